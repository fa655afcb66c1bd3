"use strict";

// One example over the run: accuracy above, target NLL with the threshold below, on one axis of epochs.

const SVG = "http://www.w3.org/2000/svg";
const PANEL = { left: 46, right: 14, width: 520, height: 250, tops: [14, 146], heights: [104, 74] };

function draw(parent, name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

/** A line through the measured points and a dot on each; `hollow(m)` leaves a dot unfilled, `label(m)` is its tooltip. */
function series(svg, kind, values, x, y, hollow, label) {
  const known = values.map((value, m) => m).filter((m) => Number.isFinite(values[m]));
  draw(svg, "polyline", { class: `line ${kind}`, points: known.map((m) => `${x(m)},${y(values[m])}`).join(" ") });
  for (const m of known) {
    const kinds = `dot ${kind}${hollow(m) ? " hollow" : ""}`;
    draw(draw(svg, "circle", { class: kinds, cx: x(m), cy: y(values[m]), r: 3.6 }), "title", {}, label(m));
  }
}

function gridline(svg, y, text) {
  draw(svg, "line", { class: "grid", x1: PANEL.left, x2: PANEL.width - PANEL.right, y1: y, y2: y });
  draw(svg, "text", { x: PANEL.left - 7, y: y + 4, class: "tick end" }, text);
}

/** At most four or so ticks of a logarithmic axis: as many per power of ten as there is room for. */
function logTicks(low, high) {
  let within = [];
  for (const steps of [[1, 2, 5], [1, 3], [1]]) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const step of steps) ticks.push(step * 10 ** power);
    within = ticks.filter((tick) => tick >= low && tick <= high);
    if (within.length <= 4) return within;
  }
  return within.filter((_, i) => i % Math.ceil(within.length / 4) === 0);
}

/** Labels of the axis of epochs, without those that would touch the one before. */
function epochAxis(svg, epochs, x) {
  let end = -Infinity;
  epochs.forEach((epoch, m) => {
    if (x(m) < end) return;
    draw(svg, "text", { x: x(m), y: PANEL.height - 16, class: "tick middle" }, epoch);
    end = x(m) + 12 + 8 * String(epoch).length;
  });
  draw(svg, "text", { x: (PANEL.left + PANEL.width) / 2, y: PANEL.height - 2, class: "tick middle" }, "epochs");
}

/** `curves`: arrays over the evaluations, `accuracy`, `premem`, `nll`; NaN where not measured. `thresholds`: an NLL for each evaluation, or null. */
function chart(epochs, curves, thresholds) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${PANEL.width} ${PANEL.height}`);
  svg.setAttribute("class", "chart");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "accuracy and target NLL of this example over the run");
  const [first, last] = [epochs[0], epochs[epochs.length - 1]];
  const span = PANEL.width - PANEL.left - PANEL.right - 12;
  const x = (m) => PANEL.left + 6 + (last > first ? ((epochs[m] - first) / (last - first)) * span : span / 2);
  const memorized = (m) => thresholds !== null && curves.nll[m] < thresholds[m];
  const note = (m) => (memorized(m) ? ", memorized" : "");

  const [top, bottom] = PANEL.tops;
  const accuracyY = (value) => top + (1 - value) * PANEL.heights[0];
  for (const value of [0, 0.5, 1]) gridline(svg, accuracyY(value), value);
  const before = (m) => `epoch ${epochs[m]}: pre-memorization accuracy ${percent(curves.premem[m])}`;
  series(svg, "premem", curves.premem, x, accuracyY, () => false, before);
  const said = (m) => `epoch ${epochs[m]}: accuracy ${percent(curves.accuracy[m])}${note(m)}`;
  series(svg, "accuracy", curves.accuracy, x, accuracyY, memorized, said);

  const floor = 1e-5; // a target that is certain in float32 has an NLL of 0, which a logarithmic axis cannot show
  const nll = curves.nll.map((value) => Math.max(value, floor));
  const known = nll.filter(Number.isFinite);
  if (known.length) {
    const shown = [...known, ...(thresholds ?? [])];
    const [low, high] = [Math.min(...shown) / 1.25, Math.max(...shown) * 1.25];
    const nllY = (value) => bottom + (Math.log(high / value) / Math.log(high / low)) * PANEL.heights[1];
    const floorY = bottom + PANEL.heights[1];
    const [left, right] = [PANEL.left, PANEL.width - PANEL.right];
    const edge = (thresholds ?? []).map((limit, m) => `${x(m)},${nllY(limit)}`);
    if (thresholds) {
      edge.unshift(`${left},${nllY(thresholds[0])}`);
      edge.push(`${right},${nllY(thresholds[thresholds.length - 1])}`);
      draw(svg, "polygon", { class: "below", points: [...edge, `${right},${floorY}`, `${left},${floorY}`].join(" ") });
    }
    for (const tick of logTicks(low, high)) gridline(svg, nllY(tick), Number(tick.toPrecision(1)));
    const limits = (thresholds ?? []).map((limit) => limit.toPrecision(4)).filter((limit, m, all) => limit !== all[m - 1]);
    const words = `threshold: NLL ${limits.join(", ")}`;
    if (thresholds) draw(draw(svg, "polyline", { class: "line threshold", points: edge.join(" ") }), "title", {}, words);
    series(svg, "nll", nll, x, nllY, memorized, (m) => `epoch ${epochs[m]}: NLL ${curves.nll[m].toPrecision(4)}${note(m)}`);
  }
  epochAxis(svg, epochs, x);
  return svg;
}
