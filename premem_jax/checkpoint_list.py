"""The models of a folder, as members of a ladder. Without JAX, because configs read it."""

import csv
import math

from premem_jax.errors import UserError
from premem_jax.running import storage

FILE, TEXT, COLUMNS = "losses.csv", "text.txt", ("model", "loss", "flops", "strong")
Members = dict[str, dict]


def models_in(path: str) -> tuple[Members, Members]:
    """Settings of the models in a folder of Hugging Face folders, by their names: those to finetune, those to predict.

    Its file losses.csv has the columns model (a folder's name) and loss (nats per token), and may have flops and strong
    (1: to be predicted). Without it all models are finetuned, and losses are measured on the file text.txt.

    Raises:
      UserError: neither file, or a row that does not fit; it is named.
    """
    folder = storage.path(path)
    if not path or not folder.is_dir():
        raise UserError(f"config option folder={path!r}: give a folder of Hugging Face folders")
    if not (folder / FILE).exists():
        if not (folder / TEXT).exists():
            raise UserError(f"{folder}: there is neither {FILE}, with losses, nor {TEXT}, a text to measure them on")
        names = sorted(one.parent.name for one in folder.glob("*/config.json"))
        if not names:
            raise UserError(f"{folder}: no folder in it is a Hugging Face folder, with a config.json")
        return {name: {"model.path": f"{path}/{name}", "rung.texts": f"{path}/{TEXT}"} for name in names}, {}
    rows = csv.DictReader((folder / FILE).read_text(encoding="utf-8-sig").splitlines(), skipinitialspace=True)
    if missing := [name for name in COLUMNS[:2] if name not in (rows.fieldnames or ())]:
        raise UserError(
            f"{folder / FILE}: no column {', '.join(missing)}; it has model and loss, perhaps flops, strong"
        )
    weak: Members = {}
    strong: Members = {}
    for number, row in enumerate(rows, 1):
        name, where = row["model"], f"{folder / FILE}, row {number}"
        if not name or name in weak | strong:
            raise UserError(f"{where}: model={name!r} is the name of a folder, once")
        settings = {"model.path": f"{path}/{name}", "rung.loss": _number(where, "loss", row["loss"])}
        if row.get("flops"):
            settings["rung.flops"] = _number(where, "flops", row["flops"])
        if row.get("strong") not in (None, "", "0", "1"):
            raise UserError(f"{where}: strong={row['strong']!r} is 1 for a model to be predicted, else 0")
        (strong if row.get("strong") == "1" else weak)[name] = settings
    if not weak:
        raise UserError(f"{folder / FILE}: no model that is not strong; a forecast is made from weak ones")
    return weak, strong


def _number(where: str, name: str, value: str | None) -> float:
    try:
        number = float(value or "")
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise UserError(f"{where}: {name}={value!r} must be a number above 0")
    return number
