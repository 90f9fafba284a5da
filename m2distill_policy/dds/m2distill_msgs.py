"""The policy's own messages. Each docstring is the ``.msg`` text. The order of the fields must not change.

``uint8`` in the ``.msg`` text is ``byte`` here, see :mod:`m2distill_policy.dds.types`.
"""
# No ``from __future__ import annotations`` here: the serialiser is made from the annotations themselves.

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cyclonedds.idl import IdlStruct
from cyclonedds.idl.types import byte, float32, float64, sequence, uint32, uint64

from m2distill_policy.dds.types import Float64s, Header, Strings

if TYPE_CHECKING:
    Float32s = Sequence[float]
else:
    Float32s = sequence[float32]


@dataclass
class PolicyAction(IdlStruct, typename="m2distill_msgs.msg.dds_.PolicyAction_"):
    """m2distill_msgs/msg/PolicyAction.

    ::

        # The policy's answer to one observation. Published for every observation, also in shadow mode and while
        # halting; and without an observation (stamp zero) for the rest of a ramp to a halt.
        std_msgs/Header header  # stamp: stamp of the observation; frame_id: frame of the action
        string bundle           # identifier of the bundle that answered
        string instruction      # instruction that it follows
        bool command            # whether an arm should execute `action`; false in shadow mode
        float64[] action        # x, y, z, rx, ry, rz, gripper in [-1, 1], within the safety limits
        float64[] sample        # the sampled action before any limit; empty without an answer
        uint32 modes            # number of components of the mixture; 0 without an answer
        float32[] logits        # (modes) unnormalised log weights
        float32[] means         # (modes x 7), row by row
        float32[] scales        # (modes x 7) standard deviations, row by row
    """

    header: Header = field(default_factory=Header)
    bundle: str = ""
    instruction: str = ""
    command: bool = False
    action: Float64s = field(default_factory=list)
    sample: Float64s = field(default_factory=list)
    modes: uint32 = 0
    logits: Float32s = field(default_factory=list)
    means: Float32s = field(default_factory=list)
    scales: Float32s = field(default_factory=list)


@dataclass
class PolicyStatus(IdlStruct, typename="m2distill_msgs.msg.dds_.PolicyStatus_"):
    """m2distill_msgs/msg/PolicyStatus.

    ::

        # State of the policy and the reason for it. Published every cycle. In lockstep: once for every observation,
        # after all other answers to it, and once for every episode.
        std_msgs/Header header     # stamp: stamp of the answered observation; zero if there is none
        uint64 cycle               # number of cycles since the start
        uint32 episode             # number of the lockstep episode, 0 before the first
        uint8 code                 # m2distill_policy.runtime.status.StatusCode
        string name                # name of the code
        string message            # what happened and what to do
        uint8 motion               # 0 running, 1 halting, 2 halted
        bool halted                # motion is 2
        bool command               # whether commands were sent in this cycle
        uint32 gripper_commands    # gripper commands sent since the start, or since the episode began
        string bundle              # identifier of the bundle that answered
        string[] tasks             # names of the tasks that it has learned, in order
        string instruction
        uint32 window              # number of steps that the answer is based on
        float64 latency            # s, from a complete observation to its decision
        uint32 overruns            # number of decisions that took longer than one period
        string window_cleared      # why the window was last cleared
        uint8 swap                 # m2distill_policy.runtime.status.SwapState
        string swap_message
        string swap_bundle         # identifier, empty while unknown
        string warning             # problems that do not stop the policy
    """

    header: Header = field(default_factory=Header)
    cycle: uint64 = 0
    episode: uint32 = 0
    code: byte = 0
    name: str = ""
    message: str = ""
    motion: byte = 0
    halted: bool = False
    command: bool = False
    gripper_commands: uint32 = 0
    bundle: str = ""
    tasks: Strings = field(default_factory=list)
    instruction: str = ""
    window: uint32 = 0
    latency: float64 = 0.0
    overruns: uint32 = 0
    window_cleared: str = ""
    swap: byte = 0
    swap_message: str = ""
    swap_bundle: str = ""
    warning: str = ""


@dataclass
class Episode(IdlStruct, typename="m2distill_msgs.msg.dds_.Episode_"):
    """m2distill_msgs/msg/Episode.

    ::

        # A simulated robot in lockstep has reset its environment: clear the window and begin this random stream.
        # The policy answers with one PolicyStatus with the same stamp and episode. The first observation follows
        # that answer. Stamps of observations never go back, also not from one episode to the next.
        std_msgs/Header header  # stamp: every observation of this episode is later
        uint32 number           # counts from 1
        uint64 seed             # random seed of the policy
        uint64 random_stream    # number of the random stream of this seed
        string instruction      # task instruction
    """

    header: Header = field(default_factory=Header)
    number: uint32 = 0
    seed: uint64 = 0
    random_stream: uint64 = 0
    instruction: str = ""
