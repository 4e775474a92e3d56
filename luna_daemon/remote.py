"""A set of models in a daemon, as the proxies of one ComfyUI see it: how to reach it and how to load it again.

No weights are kept here. What a proxy knows of its model beyond its id comes from the daemon once and is shared by
all clones.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from luna_engine.errors import DaemonError, LunaError

if TYPE_CHECKING:
    from collections.abc import Callable

    from luna_daemon.client import DaemonClient
    from luna_daemon.model_messages import ModelFacts

T = TypeVar("T")


class HostHooks(Protocol):
    """What a proxy needs of the ComfyUI it lives in; `comfy_nodes.comfy` implements it."""

    def check_interrupt(self) -> None:
        """Raise the host's interrupt exception if the user has cancelled the prompt."""
        ...

    def intermediate_device(self) -> Any:
        """Return the torch device on which conditioning, latents and images are kept."""
        ...

    def progress(self) -> Callable[[int, int], None]:
        """Return what moves the running node's progress bar to (done, total)."""
        ...

    def notice(self, message: str) -> None:
        """Tell the user that something legitimate was done other than asked."""
        ...


class Connect(Protocol):
    """Give the kept connection to one service; repeated calls give the same client while it lives."""

    def __call__(self) -> DaemonClient:
        """Connect, or return the live connection."""
        ...


class Source(Protocol):
    """Where the weights of a set come from, for loading it and for loading it again after a daemon's restart."""

    def load(self, client: DaemonClient) -> tuple[str, ModelFacts]:
        """Have the daemon load the set.

        Returns:
            The set's id and its facts.

        Raises:
            DaemonError: the daemon refuses, or the weights are no longer to be had.
        """
        ...


class RemoteOnlyError(LunaError, AttributeError):
    """The weights of a model live in the daemon and cannot be handed out.

    It is an AttributeError too, so that ``hasattr`` and ``getattr(clip, name, None)`` answer as for any object
    that lacks the member.
    """

    def __init__(self, member: str, place: str) -> None:
        super().__init__(
            "remote-only",
            f"{member} needs the model's weights, which live in the daemon ({place})",
            "load the model locally for this node: take CLIP and VAE from before the tunnel",
        )
        self.name = member


class RemoteSet:
    """One loaded set; shared by all clones of the proxies that use it.

    Args:
        connect: gives the connection to the service that holds the set.
        source: loads the set, now and after a restart of the daemon.
        host: the ComfyUI around it.
    """

    def __init__(self, connect: Connect, source: Source, host: HostHooks) -> None:
        self.host = host
        self._connect = connect
        self._source = source
        self._lock = threading.Lock()
        self._names: dict[str, Any] | None = None
        self.loras: set[str] = set()
        """Hashes of LoRAs that the daemon was seen to have."""
        client = connect()
        self.set_id, self.facts = self._loaded(client)
        client.holds.hold(self.set_id)
        weakref.finalize(self, client.holds.let_go, self.set_id).atexit = False
        self.place = f"{client.host}:{client.port}, set {self.set_id}"

    def call(self, request: Callable[[DaemonClient, str], T]) -> T:
        """Run one request; if the daemon was restarted meanwhile, load the set again and repeat once.

        Raises:
            DaemonError: ``daemon-model-changed`` if what can be loaded now is another model, else the daemon's own.
        """
        try:
            return request(self._connect(), self.set_id)
        except DaemonError as error:
            if error.code != "model-missing":
                raise
        self._load_again()
        return request(self._connect(), self.set_id)

    def _loaded(self, client: DaemonClient) -> tuple[str, ModelFacts]:
        """Have the set loaded, and held for this process."""
        set_id, facts = self._source.load(client)
        if "lease" in client.welcome.commands:  # not in the first daemons of this protocol
            client.lease(set_id)
        return set_id, facts

    def _load_again(self) -> None:
        with self._lock:
            set_id, facts = self._loaded(self._connect())
        if set_id != self.set_id:
            raise DaemonError(
                "daemon-model-changed",
                f"the {self.facts.family} model behind this proxy ({self.set_id}) is gone; the daemon now has {set_id}",
                "queue the workflow again from the loader on",
            )
        self.facts = facts

    def names(self) -> dict[str, Any]:
        """Return tensor name -> {shape, dtype} in ComfyUI's state-dict names, asked for once."""
        if self._names is None:
            _, self._names = self.call(
                lambda client, set_id: client.describe_model(set_id, poll=self.host.check_interrupt)
            )
        return self._names
