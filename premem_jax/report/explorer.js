// The table of all examples and, beside it, one of them. Texts of data enter the page through textContent alone.

const ROW = 34; // pixels; as in explorer.css
const TYPES = { f4: Float32Array, u1: Uint8Array, u2: Uint16Array, u4: Uint32Array };
const COLUMNS = [
  { key: "example", title: "id" },
  { key: "text", title: "question" },
  { key: "premem", title: "pre\u2011mem. accuracy", hint: "pre-memorization accuracy at the last evaluation" },
  { key: "accuracy", title: "accuracy", hint: "accuracy of the samples at the last evaluation" },
  { key: "nll", title: "NLL", hint: "of the target at the last evaluation, mean nats per token" },
  { key: "memorized", title: "memorized at epoch", hint: "the first evaluation at which the target is below the threshold" },
  { key: "tokens", title: "tokens", hint: "of the target" },
  { key: "ches", title: "CHES", hint: "how alike the pair was to the model before training on pairs", some: true },
  { key: "change", title: "change of log π", hint: "of the chosen response since then, in nats", some: true },
];

const percent = (value) => (Number.isFinite(value) ? `${Number((100 * value).toFixed(1))} %` : "–");
const short = (value) => {
  if (!Number.isFinite(value)) return "–";
  return value === 0 || value >= 1e-3 ? value.toPrecision(3) : value.toExponential(1);
};
const signed = (value) => (Number.isFinite(value) ? `${value < 0 ? "−" : ""}${Number(Math.abs(value).toPrecision(3))}` : "–");
const byId = (id) => document.getElementById(id);

/** A new element with a class and children; strings become text, never markup. */
function element(name, kind, ...children) {
  const node = document.createElement(name);
  if (kind) node.className = kind;
  node.append(...children.filter((child) => child !== null));
  return node;
}

function unpacked([type, data]) {
  return new TYPES[type](Uint8Array.from(atob(data), (c) => c.charCodeAt(0)).buffer);
}

function unpackedSplit(split) {
  const all = (group) => Object.fromEntries(Object.entries(group).map(([key, value]) => [key, unpacked(value)]));
  return {
    ...split,
    prompt: unpacked(split.prompt),
    reference: unpacked(split.reference),
    rejected: unpacked(split.rejected),
    columns: { ...all(split.columns), example: split.example },
    curves: all(split.curves),
    groups: split.groups.map((group) => ({ ...group, members: unpacked(group.members) })),
    orders: new Map(), // rows sorted by a column, as they are asked for
  };
}

class Explorer {
  constructor(data) {
    this.data = data;
    this.box = byId("rows");
    this.sort = { key: "example", down: false };
    this.query = "";
    this.searchable = [];
    const names = data.splits.map((split) => split.name);
    byId("split").replaceChildren(...names.map((name) => element("option", "", name)));
    byId("split").onchange = (event) => this.show(names.indexOf(event.target.value));
    byId("search").oninput = (event) => { this.query = normal(event.target.value).trim(); this.refresh(); };
    this.box.onscroll = () => this.render();
    this.box.onkeydown = (event) => this.key(event);
    new ResizeObserver(() => this.render()).observe(this.box);
    window.onhashchange = () => this.follow();
    if (!this.follow()) this.show(0);
    this.prepare();
  }

  /** Shows the example that the address names, `#SPLIT/ID`; says whether there is one. */
  follow() {
    const [, name, id] = decodeURIComponent(location.hash).match(/^#(.*)\/(-?\d+)$/) ?? [];
    const at = this.data.splits.findIndex((split) => split.name === name);
    const row = at < 0 ? -1 : this.data.splits[at].example.indexOf(Number(id));
    if (row < 0) return false;
    if (this.split?.name !== name || !this.order.includes(row)) this.show(at);
    this.select(row);
    return true;
  }

  /** The head of the columns that the split has. */
  head() {
    this.columns = COLUMNS.filter(({ key, some }) => !some || key in this.split.columns);
    const cells = this.columns.map((column) => {
      const button = element("button", "", column.title);
      button.title = column.hint ?? "";
      button.onclick = () => this.sortBy(column.key);
      const cell = element("th", column.key, button);
      cell.scope = "col";
      return cell;
    });
    byId("head").replaceChildren(...cells);
  }

  /** Turns to the split at `index` of the data, with no filter and its first example. */
  show(index) {
    this.split = unpackedSplit(this.data.splits[index]);
    this.shared = sharedStart([...new Set(this.split.prompt)].filter(Boolean).map((at) => this.text(at)));
    this.group = this.split.groups[0];
    this.head();
    if (!this.columns.some(({ key }) => key === this.sort.key)) this.sort = { key: "example", down: false };
    this.query = byId("search").value = "";
    byId("split").value = this.split.name;
    const buttons = this.split.groups.map((group) => {
      const count = group.members.reduce((sum, member) => sum + member, 0);
      const button = element("button", "", `${group.name} `, element("span", "count", count.toLocaleString("en")));
      button.title = group.means;
      button.onclick = () => { this.group = group; this.refresh(); };
      return button;
    });
    byId("groups").replaceChildren(...buttons);
    this.selected = -1;
    this.refresh();
    if (this.order.length) this.select(this.order[0], false);
  }

  text(index) { return this.data.texts[index]; }

  /** A prompt in a line of the table, without what all begin with, as chat templates write. */
  question(index) {
    const kept = this.text(index).slice(this.shared, this.shared + 160);
    return this.shared && index ? `… ${kept}` : kept;
  }

  sortBy(key) {
    const { sort } = this;
    this.sort = { key, down: sort.key === key ? !sort.down : !["example", "text", "memorized"].includes(key) };
    this.refresh();
  }

  /** Filters and searches; the rows keep the order in which they are sorted. */
  refresh() {
    const { example, groups } = this.split;
    const rows = this.sorted().filter((row) => this.group.members[row] && this.matches(row));
    this.order = rows;
    [...byId("groups").children].forEach((button, i) => button.setAttribute("aria-pressed", groups[i] === this.group));
    [...byId("head").children].forEach((cell, i) => {
      const direction = this.sort.down ? "descending" : "ascending";
      cell.setAttribute("aria-sort", this.columns[i].key === this.sort.key ? direction : "none");
    });
    byId("found").textContent = `${rows.length.toLocaleString("en")} of ${example.length.toLocaleString("en")}`;
    byId("means").textContent = `${this.group.name}: ${this.group.means}.`;
    this.box.scrollTop = 0;
    this.render();
  }

  /** All rows of the split in order, sorted once for each column and direction; what is not measured comes last. */
  sorted() {
    const { columns, example, prompt, orders } = this.split;
    const sign = this.sort.down ? -1 : 1;
    const name = sign + this.sort.key;
    if (orders.has(name)) return orders.get(name);
    const rows = [...example.keys()];
    if (this.sort.key === "text") {
      const compare = new Intl.Collator("en", { numeric: true }).compare;
      rows.sort((a, b) => sign * compare(this.text(prompt[a]), this.text(prompt[b])) || a - b);
    } else {
      const of = columns[this.sort.key];
      rows.sort((a, b) => isNaN(of[a]) - isNaN(of[b]) || sign * (of[a] - of[b]) || a - b);
    }
    orders.set(name, rows);
    return rows;
  }

  matches(row) {
    if (!this.query) return true;
    const { prompt, reference } = this.split;
    return this.holds(prompt[row]) || this.holds(reference[row]);
  }

  holds(index) { return this.searched(index).includes(this.query); }

  /** A text in its normal form, which is made once. */
  searched(index) { return (this.searchable[index] ??= normal(this.text(index))); }

  /** Makes the normal forms from `index` on while nobody waits, a few milliseconds at a time. */
  prepare(index = 0) {
    for (const until = performance.now() + 8; index < this.data.texts.length && performance.now() < until; index++)
      this.searched(index);
    if (index < this.data.texts.length) setTimeout(() => this.prepare(index));
  }

  /** Puts those rows into the page that can be seen, between two empty ones as high as the rest. */
  render() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW) - 8);
    const last = Math.min(this.order.length, first + Math.ceil(this.box.clientHeight / ROW) + 16);
    const space = (rows) => {
      const cell = element("td", "");
      cell.colSpan = this.columns.length;
      const line = element("tr", "space", cell);
      line.style.height = `${rows * ROW}px`;
      line.ariaHidden = "true";
      return line;
    };
    const lines = this.order.slice(first, last).map((row) => this.line(row));
    byId("body").replaceChildren(space(first), ...lines, space(this.order.length - last));
  }

  line(row) {
    const { columns, prompt, example } = this.split;
    const epoch = this.data.epochs[columns.memorized[row]];
    const share = (key) => {
      const cell = element("td", key, element("span", "bar"), percent(columns[key][row]));
      cell.firstChild.style.width = `${Number.isFinite(columns[key][row]) ? 100 * columns[key][row] : 0}%`;
      return cell;
    };
    const line = element(
      "tr",
      row === this.selected ? "selected" : "",
      element("td", "example", String(example[row])),
      element("td", "text", this.question(prompt[row])),
      share("premem"),
      share("accuracy"),
      element("td", "nll", short(columns.nll[row])),
      element("td", "memorized", epoch === undefined ? "–" : String(epoch)),
      element("td", "tokens", columns.tokens[row] ? String(columns.tokens[row]) : "–"),
      ...this.columns.filter(({ some }) => some).map(({ key }) => element("td", key, signed(columns[key][row]))),
    );
    line.onclick = () => this.select(row);
    return line;
  }

  key(event) {
    const page = Math.floor(this.box.clientHeight / ROW) - 1;
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    const move = moves[event.key];
    if (move === undefined || event.target !== this.box || !this.order.length) return;
    event.preventDefault();
    const at = Math.min(Math.max(this.order.indexOf(this.selected) + move, 0), this.order.length - 1);
    this.select(this.order[at]);
  }

  /** Shows one example; `name` it in the address, so that a link leads to it. */
  select(row, name = true) {
    this.selected = row;
    const top = this.order.indexOf(row) * ROW;
    const view = this.box.clientHeight - byId("head").offsetHeight - ROW;
    if (top < this.box.scrollTop || top > this.box.scrollTop + view)
      this.box.scrollTop = top < this.box.scrollTop ? top : top - view;
    this.render();
    if (name) history.replaceState(null, "", `#${encodeURIComponent(this.split.name)}/${this.split.example[row]}`);
    byId("detail").replaceChildren(...this.detail(row));
    byId("detail").scrollTop = 0;
  }

  detail(row) {
    const { name, example, curves, groups, prompt, reference, rejected } = this.split;
    const count = this.data.steps.length;
    const over = (key) => Array.from({ length: count }, (_, m) => curves[key][m * example.length + row]);
    const [samples, correct] = [over("samples"), over("correct")];
    const accuracy = samples.map((n, m) => (n ? correct[m] / n : NaN));
    const tags = groups.slice(1).filter((group) => group.members[row]);
    const lines = { accuracy: "accuracy", premem: "pre-memorization accuracy", nll: "target NLL", threshold: "threshold" };
    if (!this.split.trained) delete lines.premem;
    if (this.data.nll === null) delete lines.threshold;
    const keys = Object.entries(lines).map(([kind, title]) => element("span", "", element("i", kind), title));
    const { epochs, nll } = this.data;
    return [
      element("h3", "", `${name} example ${example[row]} `, ...tags.map((group) => element("span", "tag", group.name))),
      chart(epochs, { accuracy, premem: over("premem"), nll: over("nll") }, nll),
      element("p", "legend", ...keys),
      ...this.passage("prompt", prompt[row]),
      ...this.passage(rejected[row] ? "chosen response" : "reference solution", reference[row]),
      ...this.passage("rejected response", rejected[row]),
      element("p", "label", "sampled answers"),
      ...this.answers(row, samples, correct, over("unparsed")),
    ];
  }

  passage(label, index) {
    return index ? [element("p", "label", label), element("pre", "", this.text(index))] : [];
  }

  /** What was sampled, latest evaluation first; equal answers are shown once, with their number. */
  answers(row, samples, correct, unparsed) {
    const kept = this.split.responses[row] ?? {};
    const measured = [...samples.keys()].filter((m) => samples[m]).reverse();
    if (!measured.length) return [element("p", "note", "None: this split was not sampled.")];
    const parts = measured.map((m) => {
      const extra = unparsed[m] ? `, ${unparsed[m]} without an answer` : "";
      const title = element("summary", "", `epoch ${this.data.epochs[m]}`);
      title.append(element("small", "", `step ${this.data.steps[m]}: ${correct[m]} of ${samples[m]} correct${extra}`));
      if (!kept[m]) return element("p", "untold", ...title.childNodes);
      const part = element("details", "", title, element("div", "", ...this.responses(kept[m])));
      part.open = m === measured[0];
      return part;
    });
    const none = "The texts of this example were not kept; keep_texts of the evaluator says of how many they are.";
    return Object.keys(kept).length ? parts : [...parts, element("p", "note", none)];
  }

  responses(drawn) {
    const counts = new Map();
    for (const pair of drawn) counts.set(String(pair), (counts.get(String(pair)) ?? 0) + 1);
    return [...counts].map(([pair, times]) => {
      const [text, verdict] = pair.split(",").map(Number);
      const kind = this.data.verdicts[verdict];
      const badge = element("span", "badge", times > 1 ? `${kind}, ${times} times` : kind);
      return element("pre", `response ${kind}`, badge, this.text(text));
    });
  }
}

/** How many characters all of the texts begin with, in whole words; none if it is little, or one text. */
function sharedStart([first = "", ...others]) {
  let length = others.length ? first.length : 0;
  for (const text of others) while (!text.startsWith(first.slice(0, length))) length--;
  const words = first.slice(0, length).search(/\S*$/);
  return words > 20 ? words : 0;
}

const normal = (text) => text.toLowerCase().replace(/\s+/g, " ");

new Explorer(JSON.parse(byId("data").textContent));
