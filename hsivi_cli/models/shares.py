"""What --noise-share says of a chain's layers."""

from __future__ import annotations

from ..errors import HsiviError
from ..method.chain import Chain, eta_shares

OWN_NOISE = "own"  # of --noise-share: that of a solver that adds noise


def parse_share(text: str, chain: Chain) -> list[float]:
    """--noise-share: "0.5", "0.2,0.5,1" (layers 1..K), "eta:0.2", or "own": the solver's."""
    if text == OWN_NOISE:
        if not chain.s0.any():
            raise HsiviError(
                f"--noise-share {text} goes with a --start that adds noise: sde-dpm++2-auto, or "
                "ddpm-auto"
            )
        return chain.noise_share.tolist()
    try:
        if text.startswith("eta:"):
            return eta_shares(chain.alpha_bar, float(text[4:]))
        shares = [float(word) for word in text.split(",")]
    except ValueError:
        raise HsiviError(
            f"--noise-share {text!r} is none of numbers such as 0.5 or 0.2,0.5,1, eta:0.2 and own"
        ) from None
    if len(shares) not in (1, chain.nfe):
        raise HsiviError(
            f"--noise-share has {len(shares)} numbers; give one, or {chain.nfe}, from layer 1 up"
        )
    return shares * (chain.nfe if len(shares) == 1 else 1)
