"""llama.cpp: its source and its build."""

from __future__ import annotations

from settings.section import Section, setting


class BuildSettings(Section, title="Source and build"):
    """Which llama.cpp is built, and how."""

    llama_cpp_repository: str = setting(
        "https://github.com/ggml-org/llama.cpp",
        "Where llama.cpp's source is fetched from, by commit.",
        allowed="the https:// address of a git repository, without user or password",
        pattern=r"^(https?|git)://[^\s'\"]+$",
    )
    llama_cpp_commit: str = setting(
        "0c1e57098bba43ac29e6e3b677cdceebdd22334f",
        "The commit that is built; git proves that the content is the commit's. "
        "The default is what every figure in docs/ was measured on.",
        allowed="a full commit hash, 40 hexadecimal digits",
        pattern=r"^[0-9a-f]{40}$",
    )
    build_native: bool = setting(
        True,
        "Compile for this host's own CPU (`-march=native`). Turn off where a VPS may move between CPU types.",
    )
    build_jobs: int | None = setting(
        None, "Compiler processes at once; unset: one a core, as far as free memory allows.", ge=1, le=64
    )
    keep_releases: int = setting(
        2,
        "Builds kept besides the current one, for going back without compiling.",
        unit="releases",
        ge=0,
        le=20,
    )
