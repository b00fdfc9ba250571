"""BoundEncoders: the encoders that a router was trained on, and no others."""

from collections.abc import Sequence
from typing import Any, NoReturn

from routerjax.encoder.encoder import Encoder
from routerjax.encoder.selection import Selection
from routerjax.features.feature_map import FeatureMap, Stores, as_tuple
from routerjax.store.identity import identity_differences
from routerjax.store.store import ActivationStore

# Fields of a store's identity that say what the encoder computes; the others say what was kept.
_ENCODER_FIELDS = ("encoder_id", "revision", "family", "weights_digest", "tokenizer_digest",
                   "template_digest", "chat_template_kwargs", "prompt_date", "control_text",
                   "max_tokens", "compute_dtype", "precision")  # fmt: skip


class BoundEncoders:
    """Holds what each encoder must compute, and the encoder itself once it is given or loaded.

    Attributes:
      identities: In the order of the features' numbers.
    """

    def __init__(self, identities: Sequence[dict[str, Any]]):
        self.identities: tuple[dict[str, Any], ...] = tuple(
            {key: identity.get(key) for key in _ENCODER_FIELDS} for identity in identities
        )
        self._encoders: dict[int, Encoder] = {}

    def load(self) -> tuple[Encoder, ...]:
        """The encoders, loaded where they were not given; see `Router.encoders`."""
        for i, identity in enumerate(self.identities):
            if i not in self._encoders:
                loaded = Encoder.from_identity(identity)
                differences = self._differences(i, loaded.identity, "what lies there now")
                if differences:
                    _refuse([differences], [identity])
                self._encoders[i] = loaded
        return tuple(self._encoders[i] for i in range(len(self.identities)))

    def use(self, encoder: Encoder | Sequence[Encoder]) -> None:
        """Binds encoders to their identities; see `Router.use_encoder`."""
        for given in encoder if isinstance(encoder, Sequence) else (encoder,):
            differences = [
                self._differences(i, given.identity, "this encoder")
                for i in range(len(self.identities))
            ]
            if all(differences):
                _refuse(differences, self.identities)
            places = [i for i, differ in enumerate(differences) if not differ]
            self._encoders |= dict.fromkeys(places, given)

    def stores(self, stores: Stores, features: FeatureMap) -> tuple[ActivationStore, ...]:
        """A store of each encoder with what `features` reads; see `Router.stores_in_order`."""
        stores, ordered = as_tuple(stores), []
        for i, identity in enumerate(self.identities):
            differences = [
                self._differences(i, store.identity, "the store's encoder") for store in stores
            ]
            if all(differences):
                _refuse(differences, [identity])
            read = set(features.selection(i).sites)
            fitting = [s for s, differ in zip(stores, differences, strict=True) if not differ]
            holding = [s for s in fitting if read <= {*Selection(s.layers, s.poolings).sites}]
            ordered.append((holding or fitting)[0])
        return tuple(ordered)

    def _differences(self, i: int, identity: dict[str, Any], name: str) -> list[str]:
        """How an identity differs from that of the i-th encoder."""
        ours = f"the router's encoder {i}" if len(self.identities) > 1 else "the router"
        theirs = {key: identity.get(key) for key in _ENCODER_FIELDS}
        return identity_differences(self.identities[i], theirs, ours, name)


def _refuse(differences: Sequence[Sequence[str]], wanted: Sequence[dict[str, Any]]) -> NoReturn:
    ids = " or ".join(repr(identity["encoder_id"]) for identity in wanted)
    raise ValueError(
        "the router was trained on another encoder: "
        + " - or else ".join("; ".join(each) for each in differences)
        + f". Use {ids} with these settings, or train a router on the encoder at hand"
    )
