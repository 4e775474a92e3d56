"""ComfyUI's folders: which files there are, where they lie, and what may be read and written."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import ipaddress
import sys
from pathlib import Path

from luna_engine.errors import LunaError


class Folders:
    """What ComfyUI's folder lists and settings say."""

    def lora_files(self) -> list[str]:
        """List ComfyUI's LoRA files, paths below their folders."""
        import folder_paths

        return list(folder_paths.get_filename_list("loras"))

    def embedding_files(self) -> list[str]:
        """List ComfyUI's embedding files, paths below their folders."""
        import folder_paths

        return list(folder_paths.get_filename_list("embeddings"))

    def files(self, kind: str) -> list[str]:
        """List the files of one of ComfyUI's model folders, such as ``vae``, paths below their folders."""
        import folder_paths

        return list(folder_paths.get_filename_list(kind))

    def file_path(self, kind: str, name: str) -> Path:
        """Return the path of a file that ComfyUI lists.

        Raises:
            LunaError: ``model-missing`` if it is gone.
        """
        import folder_paths

        found = folder_paths.get_full_path(kind, name)
        if found is None:
            raise LunaError("model-missing", f"{name} is gone from the {kind} folders", "refresh the page (r)")
        return Path(found)

    def lora_stamp(self) -> str:
        """Return a stamp of the LoRA folders: names, sizes and times of the files in them; never raises."""
        import folder_paths

        digest = hashlib.sha256()
        for name in folder_paths.get_filename_list("loras"):
            path = folder_paths.get_full_path("loras", name)
            with contextlib.suppress(OSError, TypeError):  # gone since it was listed
                found = Path(path).stat()
                digest.update(repr((name, found.st_size, found.st_mtime_ns)).encode())
        return digest.hexdigest()

    def model_files(self) -> list[str]:
        """List checkpoints, then diffusion models, paths below their folders; a name of both is listed once."""
        folder_paths = sys.modules.get("folder_paths")
        if folder_paths is None:
            return []
        names = [*folder_paths.get_filename_list("checkpoints"), *folder_paths.get_filename_list("diffusion_models")]
        return list(dict.fromkeys(names))

    def model_path(self, name: str) -> Path:
        """Return the file of a checkpoint or diffusion model.

        Raises:
            LunaError: ``model-missing`` with the closest names.
        """
        import folder_paths

        for kind in ("checkpoints", "diffusion_models"):
            if (found := folder_paths.get_full_path(kind, name)) is not None:
                return Path(found)
        near = difflib.get_close_matches(name, self.model_files(), 3, 0.5)
        raise LunaError(
            "model-missing",
            f"there is no checkpoint or diffusion model {name!r}",
            f"near: {', '.join(near)}" if near else "look into ComfyUI's models folders, then refresh the page (r)",
        )

    def wildcard_folders(self) -> tuple[Path, ...]:
        """Return ComfyUI's ``wildcards`` folders that exist, those of extra_model_paths included."""
        import folder_paths

        return tuple(Path(folder) for folder in folder_paths.get_folder_paths("wildcards") if Path(folder).is_dir())

    def is_on_loopback(self) -> bool:
        """Tell whether this ComfyUI can be reached from its own machine only."""
        from comfy.cli_args import args

        return all(_is_loopback(address) for address in str(args.listen).split(","))

    def own_roots(self) -> tuple[Path, ...]:
        """Return ComfyUI's own folders, their real paths: input, output, temp, models and wildcards."""
        import folder_paths

        places = [
            folder_paths.get_input_directory(),
            folder_paths.get_output_directory(),
            folder_paths.get_temp_directory(),
            folder_paths.models_dir,
            *folder_paths.get_folder_paths("wildcards"),
        ]
        return tuple(Path(place).resolve() for place in places)


def _is_loopback(address: str) -> bool:
    address = address.strip()
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
