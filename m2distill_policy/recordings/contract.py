"""Read the contract for an import from a bundle, a demonstration file or a JSON file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from m2distill_policy.bundle import open_bundle
from m2distill_policy.contract import Contract
from m2distill_policy.demonstrations import DemonstrationFile
from m2distill_policy.errors import ContractError


def read_contract(path: Path) -> Contract:
    """Read the contract of a bundle (a folder), a demonstration file (.hdf5) or a JSON file.

    The text encoder is removed, because demonstrations contain instructions as text. A run chooses its encoder.
    """
    if path.is_dir():
        contract = open_bundle(path).contract
    elif path.suffix in (".hdf5", ".h5"):
        contract = DemonstrationFile(path).contract
    else:
        try:
            contract = Contract.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ContractError(f"{path} cannot be read as a contract: {error}") from error
    return dataclasses.replace(contract, text=None)
