"""The members of a study, as its config names them. Without JAX, because launchers import it."""

import difflib
import re
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from premem_jax.errors import UserError, explain

ALL = "all"


@dataclass(frozen=True)
class Member:
    """One run of a study: the changes of its config, and the earlier members that it needs."""

    name: str
    changes: dict[str, Any]  # config key → value; `experiment` names what makes the member, by default a finetune
    needs: tuple[str, ...] = ()


def members_of(config) -> dict[str, Member]:
    """The members by name, in the order in which they are made.

    Raises:
      UserError: no members, a name that occurs twice or cannot be a folder name, or a need that is no earlier member.
    """
    members: dict[str, Member] = {}
    for name, changes, needs in config.study.members:
        if name in members or name == ALL or not re.fullmatch(r"\w[\w.=+-]*", name):
            raise UserError(
                f"study.members: {name!r} is no name for another member; each has a name of its own, of letters, "
                f"digits and _ . = + -, and not {ALL!r}"
            )
        if late := [need for need in needs if need not in members]:
            raise UserError(f"study.members: {name} needs {late[0]!r}, which is no member before it")
        members[name] = Member(name, dict(changes), tuple(needs))
    if not members:
        raise UserError("study.members: there must be some")
    return members


def chosen(members: dict[str, Member], name: str) -> list[Member]:
    """The members of a launch: all, or the one called `name` and those that it needs, in order.

    Raises:
      UserError: an unknown name.
    """
    if name == ALL:
        return list(members.values())
    if name not in members:
        near = difflib.get_close_matches(name, members, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"study.member={name!r} is no member{hint} (there are: {', '.join(members)})")
    wanted = {name}
    for member in reversed(members.values()):
        if member.name in wanted:
            wanted.update(member.needs)
    return [member for member in members.values() if member.name in wanted]


def config_of(config, member: Member, given: dict[str, Any] | None = None) -> ConfigDict:
    """The config of a member: that of the study, with the member's changes and the settings from earlier members.

    Raises:
      UserError: an unknown key, or a value of the wrong type.
    """
    c = ConfigDict(config.to_dict())
    del c["study"]
    c.experiment = "finetune"
    c.lock()
    try:
        c.update_from_flattened_dict(member.changes | (given or {}))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(explain(error)) from error
    return c.unlock()
