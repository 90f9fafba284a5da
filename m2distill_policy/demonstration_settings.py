"""Compare the settings in a demonstration file with a contract; get the instruction from the name of LIBERO's file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from m2distill_policy.contract import Contract
from m2distill_policy.errors import DemonstrationError

#: Names in robosuite of the Panda arm, whose joints are in LIBERO's contract.
_PANDAS = ("Panda", "MountedPanda", "OnTheGroundPanda")
_PANDA_JOINTS = tuple(f"panda_joint{i}" for i in range(1, 8))
#: Largest relative difference of two numbers that count as equal.
_SAME = 1e-6

_SCENE = re.compile(r"[A-Z][A-Z_]*_SCENE\d+_")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*")


def check_settings(settings: Mapping[str, Any], contract: Contract, attribute: str = "env_args") -> None:
    """Refuse robomimic's and LIBERO's ``env_args`` if they contradict the contract.

    The checked fields are ``control_freq``, ``robots``, and the controller's type, kind of input and limits, also where
    robosuite 1.5 writes them (``body_parts``). A missing field is not an error.

    Args:
        settings: Value of the attribute, parsed from JSON: ``{"env_kwargs": {...}}``, or the fields directly.
        contract: Contract of the demonstrations.
        attribute: Name of the attribute, for the message.

    Raises:
        DemonstrationError: A field contradicts the contract. The message names the field and both values; the caller
            adds the name of the file.
    """
    kwargs = settings.get("env_kwargs")
    for where, fields in ((attribute, settings), (f"{attribute}.env_kwargs", kwargs)):
        if not isinstance(fields, Mapping):
            continue
        for name, got, wanted, fits in _claims(fields, contract):
            if not fits:
                raise DemonstrationError(
                    f"{where}.{name} is {_short(got)}, but the contract has {wanted}; record these demonstrations "
                    "again, or convert their actions and that field to the contract"
                )


def _claims(fields: Mapping[str, Any], contract: Contract) -> Iterator[tuple[str, Any, str, bool]]:
    """Yield (name, value, value of the contract, whether they agree) of each checked field that is present."""
    rate = fields.get("control_freq")
    if rate is not None:
        yield "control_freq", rate, f"{contract.rate_hz:g} Hz", _is(rate, contract.rate_hz)
    robots = fields.get("robots")
    entries = {entry for group in contract.proprioception for entry in group.entries}
    if robots is not None and entries.issuperset(_PANDA_JOINTS):
        names = [robots] if isinstance(robots, str) else robots
        yield "robots", robots, "one Panda", isinstance(names, list) and len(names) == 1 and names[0] in _PANDAS
    controllers = fields.get("controller_configs")
    several = isinstance(controllers, list)
    for index, controller in enumerate(controllers if isinstance(controllers, list) else [controllers]):
        if controller is not None:
            yield from _of_controller(
                f"controller_configs[{index}]" if several else "controller_configs", controller, contract
            )


def _of_controller(where: str, controller: Any, contract: Contract) -> Iterator[tuple[str, Any, str, bool]]:
    if not isinstance(controller, Mapping):
        yield where, controller, "OSC_POSE", False
        return
    parts = controller.get("body_parts")
    if isinstance(parts, Mapping):  # robosuite 1.5 has a controller for each part of the robot
        for name, part in parts.items():
            if name in ("right", "left", "arms") and part is not None:
                yield from _of_controller(f"{where}.body_parts.{name}", part, contract)
        return
    if "right" in controller or "left" in controller:
        for name in ("right", "left"):
            if controller.get(name) is not None:
                yield from _of_controller(f"{where}.{name}", controller[name], contract)
        return
    scales = (contract.action.translation_scale,) * 3 + (contract.action.rotation_scale,) * 3
    for field, wanted in (
        ("type", "OSC_POSE"),
        ("control_delta", True),
        ("input_type", "delta"),
        ("impedance_mode", "fixed"),
    ):
        got = controller.get(field)
        if got is not None:
            yield f"{where}.{field}", got, _of(wanted), type(got) is type(wanted) and got == wanted
    for field, limits in (
        ("input_max", (1.0,) * 6),
        ("input_min", (-1.0,) * 6),
        ("output_max", scales),
        ("output_min", tuple(-scale for scale in scales)),
    ):
        got = controller.get(field)
        if got is not None:
            values = got if isinstance(got, list) else [got] * 6
            fits = len(values) == 6 and all(_is(value, limit) for value, limit in zip(values, limits, strict=True))
            yield f"{where}.{field}", got, str([float(f"{limit:g}") for limit in limits]), fits
    frame = controller.get("input_ref_frame")
    if frame is not None:  # deltas are equal in base and world frame, because the arm's base is not rotated
        yield f"{where}.input_ref_frame", frame, contract.action.frame, frame in (contract.action.frame, "world")


def _of(wanted: object) -> str:
    return "deltas" if wanted is True else str(wanted)


def _is(value: Any, wanted: float) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isclose(value, wanted, rel_tol=_SAME, abs_tol=0.0)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def words_of(task_name: str) -> str | None:
    """Return the instruction in one of LIBERO's task names. As in LIBERO, it is the part after the scene.

    ``KITCHEN_SCENE10_close_the_top_drawer`` -> ``close the top drawer``; None if the name has no instruction.
    """
    words = _SCENE.sub("", task_name, count=1) if _SCENE.match(task_name) else task_name
    return words.replace("_", " ") if _NAME.fullmatch(words) else None
