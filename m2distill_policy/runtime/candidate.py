"""The next network of a hot swap: before the switch, it processes the recent observations of the episode."""

from __future__ import annotations

from dataclasses import dataclass

from m2distill_policy.runtime.engine import Conditioning, Engine
from m2distill_policy.runtime.window import RawStep, TokenWindow


@dataclass(frozen=True)
class AnsweredWindow:
    """The observations of the current window that the server has answered. A candidate must process them too."""

    instruction: str | None
    generation: int
    steps: tuple[RawStep, ...]

    @property
    def key(self) -> tuple[str | None, int, int]:
        """Identity of the window: equal keys mean equal windows."""
        return self.instruction, self.generation, self.steps[-1].number if self.steps else 0


class Candidate:
    """A loaded network whose window is being filled with the steps that the current network has answered."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.window: TokenWindow = engine.window()
        self.conditioning: Conditioning | None = None
        self.key: tuple[str | None, int, int] | None = None

    def catch_up(self, answered: AnsweredWindow) -> None:
        """Bring the window up to ``answered``.

        Raises:
            UnknownInstructionError: The bundle does not know the instruction.
            EngineError: The network failed.
        """
        instruction = self.conditioning.instruction if self.conditioning else None
        if answered.instruction != instruction:
            self.conditioning = None if answered.instruction is None else self.engine.condition(answered.instruction)
        same_window = self.key is not None and self.key[:2] == (answered.instruction, answered.generation)
        fed = self.key[2] if same_window and self.key is not None else 0
        # If steps are missing between the window and the history, the window is filled from the history alone.
        if not same_window or (answered.steps and answered.steps[0].number > fed + 1):
            self.window.clear()
            fed = 0
        if self.conditioning is not None:
            # The window has one step fewer than the history, because it holds the steps before the one that is
            # answered.
            for step in answered.steps[-max(1, self.window.past_tokens.shape[1]) :]:
                if step.number > fed:
                    _, tokens = self.engine.step(self.conditioning, step.observation, self.window)
                    self.window.push(tokens)
        self.key = answered.key
