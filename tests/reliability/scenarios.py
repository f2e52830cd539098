"""All scenarios, by their names."""

from __future__ import annotations

from of_checkpoints import CARRIED, LOADS, SAVES
from of_files import FILES
from of_folders import FOLDERS, TRAININGS
from scenario import Scenario

SCENARIOS: dict[str, Scenario] = {each.name: each for each in (*SAVES, *LOADS, *CARRIED, *FILES, *FOLDERS, *TRAININGS)}
