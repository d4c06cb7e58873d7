"""The one adapter to nftables: libnftables through ctypes, else the `nft` program.

The library's context is made once and kept: a rule change then costs a fraction of a millisecond,
against 12-16 ms for a process. The context belongs to the network namespace of the thread that
makes it, and takes one command at a time.
"""

from __future__ import annotations

import ctypes
import subprocess
import threading
from typing import Protocol

from proto.errors import RuntimeFailedError

_LIBRARY = "libnftables.so.1"
_OUTPUT_JSON = 1 << 4
_PROGRAM_SECONDS_MAX = 30


class NftError(RuntimeFailedError):
    """nftables refused a transaction; nothing of it was done."""


class Nft(Protocol):
    """Runs nft commands in one network namespace."""

    def run(self, text: str) -> None:
        """Carry out the text as one transaction.

        Raises:
            NftError: it was refused.
        """

    def list_json(self, command: str) -> str:
        """Give the JSON answer of a listing command.

        Raises:
            NftError: it was refused.
        """

    def close(self) -> None:
        """Free what is held."""


class NftLibrary:
    """libnftables in this process."""

    def __init__(self, library: ctypes.CDLL) -> None:
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        library.nft_ctx_free.argtypes = [ctypes.c_void_p]
        library.nft_ctx_free.restype = None
        for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
            getattr(library, name).restype = ctypes.c_char_p
        library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        library.nft_ctx_output_set_flags.restype = None
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._library = library
        self._lock = threading.Lock()
        self._context = library.nft_ctx_new(0)
        if not self._context:
            raise RuntimeFailedError("libnftables could not open a context; is this node Linux?")
        library.nft_ctx_buffer_output(self._context)
        library.nft_ctx_buffer_error(self._context)

    def run(self, text: str) -> None:
        """Carry out the text as one transaction."""
        self._command(text, 0)

    def list_json(self, command: str) -> str:
        """Give the JSON answer of a listing command."""
        return self._command(command, _OUTPUT_JSON)

    def close(self) -> None:
        """Free the context and its socket."""
        with self._lock:
            if self._context:
                self._library.nft_ctx_free(self._context)
                self._context = None

    def _command(self, text: str, flags: int) -> str:
        with self._lock:
            assert self._context, "the nft context is closed"
            self._library.nft_ctx_output_set_flags(self._context, flags)
            result = self._library.nft_run_cmd_from_buffer(self._context, text.encode())
            # Reading a buffer empties it: read both, so that nothing shows up in a later answer.
            output = self._library.nft_ctx_get_output_buffer(self._context)
            error = self._library.nft_ctx_get_error_buffer(self._context)
        if result != 0:
            raise _refused(error.decode(errors="replace"))
        return bytes(output).decode()


class NftProgram:
    """The `nft` program, a process for each command."""

    def run(self, text: str) -> None:
        """Carry out the text as one transaction."""
        self._command(["nft", "-f", "-"], text)

    def list_json(self, command: str) -> str:
        """Give the JSON answer of a listing command."""
        return self._command(["nft", "-j", *command.split()], "")

    def close(self) -> None:
        """Nothing is held."""

    def _command(self, arguments: list[str], text: str) -> str:
        try:
            done = subprocess.run(
                arguments,
                input=text,
                text=True,
                capture_output=True,
                check=False,
                timeout=_PROGRAM_SECONDS_MAX,
            )
        except FileNotFoundError as error:
            raise _missing() from error
        if done.returncode != 0:
            raise _refused(done.stderr)
        return done.stdout


def open_nft() -> Nft:
    """Open nftables in the calling thread's network namespace.

    Raises:
        RuntimeFailedError: neither the library nor the program is installed.
    """
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        program = NftProgram()
        program.run("")
        return program
    return NftLibrary(library)


def _missing() -> RuntimeFailedError:
    return RuntimeFailedError(
        f"neither {_LIBRARY} nor the nft program is installed on this node; "
        "install the package nftables (it brings libnftables)"
    )


def _refused(text: str) -> NftError:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reason = lines[0] if lines else "no reason given"
    return NftError(f"nftables refused a change of the node's rules: {reason}")
