"""Joint positions that contradict each other, of one publisher or of two, and clocks that are set back."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from m2distill_policy.bundle import Bundle
from m2distill_policy.node.arrivals import Moment
from m2distill_policy.node.joint_gate import REFUSED_FOR, SETTLED, JointConflictError, JointLimit
from m2distill_policy.node.joint_states import JointStates
from m2distill_policy.node.joints import JointMap, JointSource
from m2distill_policy.node.output import Output
from m2distill_policy.runtime.status import StatusCode
from tests.bundles import toy_bundle, toy_contract
from tests.streams import BEGIN, Clock, Streams, play
from tests.test_streams import ARM, GRIPPER, in_turn, last, moving, split

CONTRACT = toy_contract()
JOINTS, OTHER = "/joint_states", "/gripper/joint_states"
NAMES = [*ARM, *GRIPPER]
LIMITS = JointMap(CONTRACT).limits
NS, MS = 1_000_000_000, 1_000_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("conflicts") / "bundle")


def at_place(arm: float, finger: float = 0.03) -> Callable[[float, Sequence[str]], list[float]]:
    """An arm that does not move, with the noise of encoders."""
    return lambda t, names: [
        (finger if "finger" in name else arm) + 1e-5 * math.sin(997 * t + i) for i, name in enumerate(names)
    ]


def swinging(speed: float, reach: float = 0.5) -> Callable[[float, Sequence[str]], list[float]]:
    """An arm whose joints reach ``speed`` (rad/s)."""
    return lambda t, names: [
        0.02 + 0.01 * math.sin(8 * t)
        if "finger" in name
        else reach * math.sin(speed / reach * t + NAMES.index(name))
        if name in NAMES
        else 0.0
        for name in names
    ]


# --- two publishers --------------------------------------------------------------------------------------------------

SECOND = {
    "the same names": (JOINTS, NAMES),
    "another order": (JOINTS, NAMES[::-1]),
    "more names": (JOINTS, [*NAMES, "wheel"]),
    "another topic": (OTHER, NAMES),
    "the arm on another topic": (OTHER, ARM),
    "the last joint": (JOINTS, ARM[-1:]),
    "the gripper": (JOINTS, GRIPPER),
}


@pytest.mark.parametrize("first", [0.0, 1.5])
@pytest.mark.parametrize(("hz", "phase"), [(10.0, 0.0), (20.0, 0.024), (50.0, 0.003), (100.0, 0.005), (3.0, 0.1)])
@pytest.mark.parametrize("second", SECOND)
def test_a_second_publisher_that_contradicts_halts_and_is_named(
    bundle: Bundle, second: str, hz: float, phase: float, first: float
) -> None:
    topic, names = SECOND[second]
    stray = Clock(hz=hz, delay=0.001, phase=phase, since=first)
    streams = Streams(
        CONTRACT,
        joints=[(JOINTS, NAMES, Clock(hz=100.0, delay=0.001)), (topic, names, stray)],
        values=[at_place(0.5), lambda t, names: [0.0] * len(names)],
    )
    outputs = play(bundle, streams, 4.0)
    after = [o for o in outputs if o.command_stamp / 1e9 - BEGIN > first + 0.5]
    codes = {o.decision.status.code for o in after}
    assert codes <= {StatusCode.BAD_OBSERVATION, StatusCode.WAITING} and not moving(after)
    text = after[-1].decision.status.message
    joint = GRIPPER if second == "the gripper" else ARM
    assert any(name in text for name in joint) and topic in text and JOINTS in text
    if first:
        assert StatusCode.RUNNING in {o.decision.status.code for o in outputs}


@pytest.mark.parametrize("hz", [10.0, 20.0])
def test_two_publishers_of_one_rate_in_turn(bundle: Bundle, hz: float) -> None:
    """Each position alone is possible for a fast joint, but not all of them in turn."""
    for second in ("the same names", "another order"):
        topic, names = SECOND[second]
        clocks = Clock(hz=max(hz, 20.0), delay=0.001), Clock(hz=hz, delay=0.001, phase=0.025, since=1.5)
        streams = Streams(
            CONTRACT,
            joints=[(JOINTS, NAMES, clocks[0]), (topic, names, clocks[1])],
            values=[at_place(0.6), at_place(0.0)],
        )
        outputs = play(bundle, streams, 4.0)
        assert last(outputs, 40) == {StatusCode.BAD_OBSERVATION}


def test_driving_continues_when_the_second_publisher_is_gone(bundle: Bundle) -> None:
    for (topic, names), stray in itertools.product(SECOND.values(), (Clock(hz=10.0, since=1.5, until=2.0),)):
        streams = Streams(
            CONTRACT,
            joints=[(JOINTS, NAMES, Clock(hz=100.0, delay=0.001)), (topic, names, stray)],
            values=[at_place(0.5), lambda t, names: [0.0] * len(names)],
        )
        outputs = play(bundle, streams, 4.5)
        for output in outputs:
            at = output.command_stamp / 1e9 - BEGIN
            if at > 2.0 + REFUSED_FOR + SETTLED:
                assert output.decision.status.code is StatusCode.RUNNING, (topic, names, at)


@pytest.mark.parametrize("speed", [0.05, 1.0, 3.0])
@pytest.mark.parametrize("hz", [23.0, 50.0, 250.0, 1000.0])
def test_publishers_that_agree_are_driven(bundle: Bundle, hz: float, speed: float) -> None:
    arm = swinging(speed)
    for topic, names in SECOND.values():
        clocks = Clock(hz=hz, delay=0.001), Clock(hz=31.0, delay=0.004, phase=0.007)
        joints: list[tuple[str, Sequence[str], Clock]] = [(JOINTS, NAMES, clocks[0]), (topic, names, clocks[1])]
        streams = Streams(CONTRACT, joints=joints, values=[arm, arm])
        codes = [o.decision.status.code for o in play(bundle, streams, 2.5)]
        assert codes[-1] is StatusCode.RUNNING and StatusCode.BAD_OBSERVATION not in codes


def test_one_publisher_takes_over_from_another(bundle: Bundle) -> None:
    arm = swinging(1.0)
    for gap in (0.0, 0.1, 0.4, 1.0):
        for topic, names in list(SECOND.values())[1:4]:
            clocks = Clock(hz=100.0, delay=0.001, until=1.6), Clock(hz=100.0, delay=0.001, since=1.6 + gap)
            joints: list[tuple[str, Sequence[str], Clock]] = [(JOINTS, NAMES, clocks[0]), (topic, names, clocks[1])]
            streams = Streams(CONTRACT, joints=joints, values=[arm, arm])
            outputs = play(bundle, streams, 3.5)
            assert last(outputs) == {StatusCode.RUNNING}
            assert StatusCode.BAD_OBSERVATION not in {o.decision.status.code for o in outputs}


def test_arm_and_gripper_split_and_swinging(bundle: Bundle) -> None:
    for topic in (JOINTS, OTHER):
        streams = dataclasses.replace(split(30.0, topic), values=[swinging(2.0), swinging(2.0)])
        codes = [o.decision.status.code for o in play(bundle, streams)]
        assert codes[-1] is StatusCode.RUNNING and StatusCode.BAD_OBSERVATION not in codes


# --- one publisher ---------------------------------------------------------------------------------------------------


class Feed:
    """Joint states of one publisher, at 100 Hz by default."""

    def __init__(self, limits: Sequence[JointLimit] = LIMITS) -> None:
        self.states = JointStates(NAMES, GRIPPER, slop=20 * MS, held=200 * MS, limits=limits)
        self.now = 0.0

    def __call__(self, arm: float, *, pause: float = 0.01, back: float = 0.0, late: float = 0.0) -> str:
        """Add a message and return the result. back: s that both clocks are set back; late: s of its delay."""
        self.now += pause
        moment = Moment(round((BEGIN + self.now - back) * NS), self.now)
        stamp = moment.wall - round(late * NS)
        try:
            self.states.add(JOINTS, stamp, NAMES, [arm] * 7 + [0.01, -0.01], moment)
        except JointConflictError as error:
            return "turns" if error.turns else "refused"
        found = self.states.at(stamp)
        return "taken" if found is not None and found[0] == arm else "kept"

    def run(self, values: Sequence[float], **options: float) -> list[str]:
        return [self(value, **options) for value in values]


@pytest.mark.parametrize("jump", [-3.0, -0.5, 0.45, 1.0, 10.0, 1e6, 1e300])
def test_jump_is_refused_until_it_has_lasted(jump: float) -> None:
    feed = Feed()
    assert set(feed.run([0.1] * 20)) == {"taken"}
    assert feed(0.1 + jump) == "refused" and feed.states.conflict(feed.now) is not None
    assert set(feed.run([0.1] * 20)) == {"taken"}, "one wrong message is left out"
    assert feed.states.conflict(feed.now) is not None and feed.states.conflict(feed.now + REFUSED_FOR) is None
    found = feed.run([0.1 + jump] * 80)
    assert found.index("taken") == 50 and set(found[50:]) == {"taken"}
    assert feed.states.conflict(feed.now) is None, "it has settled"


@pytest.mark.parametrize("pause", [0.001, 0.004, 0.01, 0.025, 0.05])
@pytest.mark.parametrize("apart", [0.12, 0.2, 0.4, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("noise", [0.0, 0.005])
def test_alternating_values_are_never_accepted(pause: float, apart: float, noise: float) -> None:
    feed = Feed()
    feed.run([0.5] * 20, pause=pause)
    said = []
    for i in range(400):
        feed(0.5 + apart * (i % 2) + noise * math.sin(i), pause=pause)
        said.append(feed.states.conflict(feed.now))
    assert all(said[3:])


def test_values_in_turn_by_more_than_one_message() -> None:
    for real, stray in itertools.product((1, 2, 7), (1, 2, 7)):
        feed = Feed()
        feed.run([0.5] * 20)
        said = []
        for i in range(300):
            feed(0.5 + 0.04 * math.sin(i) if i % (real + stray) < real else 0.0)
            said.append(feed.states.conflict(feed.now))
        assert all(said[20:]), (real, stray)


@pytest.mark.parametrize("turns", [-2, -1, 1, 2])
def test_jump_by_whole_turns_is_refused_and_reported(turns: int) -> None:
    feed = Feed()
    feed.run([0.1] * 20)
    assert set(feed.run([0.1 + turns * 2 * math.pi] * 200)) == {"turns"}
    assert set(feed.run([0.1] * 5)) == {"taken"}, "it is back"
    feed.run([0.1 + turns * 2 * math.pi] * 20)
    feed.now += 1.0
    assert feed(0.1 + turns * 2 * math.pi) == "taken", "the driver was restarted"


@pytest.mark.parametrize("gap", [0.05, 0.1, 0.2, 0.45, 0.6, 5.0])
def test_an_arm_that_moved_in_a_gap(gap: float) -> None:
    feed = Feed()
    feed.run([0.1] * 20)
    found = [feed(0.1 + 1.3, pause=gap), *feed.run([0.1 + 1.3] * 10)]
    assert set(found) == {"taken"}
    feed = Feed()
    feed.run([-2.0] * 20)
    found = [feed(2.9, pause=gap), *feed.run([2.9] * 100)]
    assert found[-1] == "taken"


@pytest.mark.parametrize("hz", [20, 33, 100, 1000])
def test_normal_arm_motion_is_never_refused(hz: int) -> None:
    rng = np.random.default_rng(hz)
    for speed in (0.5, 2.0, 4.0):
        feed = Feed()
        found = []
        for pause in rng.uniform(0.3, 1.7, 10 * hz) / hz:
            place = 0.5 * math.sin(2 * speed * (feed.now + pause)) + 1e-3 * float(rng.normal())
            found.append(feed(place, pause=float(pause)))
        assert "refused" not in found, speed


def test_limits_are_in_the_units_of_the_joint() -> None:
    found = dict(zip(JointMap(CONTRACT).wanted, LIMITS, strict=True))
    assert found[ARM[0]].turn == pytest.approx(2 * math.pi) and found[GRIPPER[0]].turn is None
    assert found[GRIPPER[0]].slack == 0.01 and found[ARM[0]].slack == 0.1
    degrees = JointMap(CONTRACT, [JointSource(ARM[0], "a", math.pi / 180), JointSource(GRIPPER[1], "b", -0.001)])
    named = dict(zip(degrees.wanted, degrees.limits, strict=True))
    assert named["a"].turn == pytest.approx(360) and named["b"].slack == pytest.approx(10)


def test_positions_that_are_not_finite_are_left_to_the_check_of_the_observation() -> None:
    feed = Feed()
    feed.run([0.1] * 20)
    for value in (math.nan, math.inf, -math.inf, 0.1):
        feed(value)
        assert feed.states.conflict(feed.now) is None


def test_nothing_is_compared_without_a_clock() -> None:
    states = JointStates(NAMES, GRIPPER, slop=0, held=0, limits=LIMITS)
    for i, value in enumerate((0.0, 3.0, -3.0, 0.0)):
        states.add(JOINTS, i * MS, NAMES, [value] * 9, None)
        assert states.at(i * MS) == [value] * 9


# --- clocks that are set back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hz", [25.0, 100.0, 500.0])
@pytest.mark.parametrize("back", [0.11, 0.19, 0.3, 0.5, 0.9, 0.999, 1.1, 30.0])
def test_joints_from_before_a_clock_was_set_back_are_forgotten(back: float, hz: float) -> None:
    """The clock of the whole computer: stamps and arrivals."""
    feed = Feed()
    for i in range(400):
        feed(i * 0.002, pause=1 / hz)
    for i in range(400, 440):
        assert feed(i * 0.002, pause=1 / hz, back=back) == "taken"
        newest = round((BEGIN + feed.now - back) * NS)
        for before in (0.0, 0.01, 0.02):
            found = feed.states.at(newest - round(before * NS))
            assert found is None or (i * 0.002 - found[0]) / 0.002 <= before * hz + 1.01


@pytest.mark.parametrize("back", [0.11, 0.19, 0.5, 0.9])
def test_joints_whose_own_clock_was_set_back(back: float) -> None:
    feed = Feed()
    for i in range(100):
        feed(i * 0.002)
    found = [feed(i * 0.002, late=back) for i in range(100, 110)]
    assert set(found[1:]) == {"taken"}


@pytest.mark.parametrize("late", [0.002, 0.01, 0.03, 0.049])
def test_reordered_messages_keep_earlier_ones(late: float) -> None:
    feed = Feed()
    for i in range(100):
        feed(i * 0.002, late=late if i % 3 == 0 else 0.0)
    stamps = feed.states.current()[0][0].stamps
    assert len(stamps) == 100 and stamps == sorted(stamps)


def test_one_very_late_message_keeps_earlier_ones() -> None:
    feed = Feed()
    for i in range(100):
        feed(i * 0.002, late=0.4 if i % 10 == 0 else 0.0)
    assert len(feed.states.current()[0][0].stamps) >= 89


def test_a_robot_whose_clock_is_set_back(bundle: Bundle) -> None:
    """Cameras and joints of another computer: their stamps are late, but less than stale_after."""
    offset = -0.17

    def stepped(clock: Clock) -> Clock:
        return in_turn(dataclasses.replace(clock, until=2.0), dataclasses.replace(clock, offset=offset, since=2.0))

    used: list[Output] = play(
        bundle,
        Streams(
            CONTRACT,
            {name: stepped(Clock(delay=0.004)) for name in CONTRACT.camera_names},
            [(JOINTS, NAMES, stepped(Clock(hz=100.0, delay=0.001)))],
            values=[swinging(0.5)],
        ),
        3.0,
    )
    codes = [o.decision.status.code for o in used]
    assert codes[-1] is StatusCode.RUNNING and StatusCode.BAD_OBSERVATION not in codes
