"""The layout of the small format."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping

from fsspec_csx.formats.folder_layout import FolderLayout, incomplete
from fsspec_csx.storage.folder import Folder

MANIFEST = "tiny.json"


class TinyLayout(FolderLayout):
    """Folders of the small format."""

    manifest = MANIFEST

    def is_shard(self, name: str) -> bool:
        return name.endswith(".tiny")

    def is_leftover(self, name: str, *, shared: bool) -> bool:
        return self.is_shard(name)

    def check_complete(
        self, folder: Folder, sizes: Mapping[str, int | None], below: Callable[[], Mapping[str, int | None]]
    ) -> None:
        if MANIFEST in sizes and (missing := sorted(_named(folder) - sizes.keys())):
            raise incomplete(folder.name, missing, "tiny.json names")

    def unnamed(self, folder: Folder, names: Collection[str]) -> set[str]:
        return {*filter(self.is_shard, names)} - _named(folder) if MANIFEST in names else set()


def _named(folder: Folder) -> set[str]:
    with folder.open(MANIFEST) as file:
        return {*json.load(file)}


LAYOUT = TinyLayout()
