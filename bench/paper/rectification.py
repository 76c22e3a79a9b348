"""rho_t and r_t over the steps, the first rectified step, and the equivalent linear warm-up.

arXiv 1908.03265, sections 4 and 5.3: r_t acts as a warm-up without a length to choose.
"""

from typing import Any

from tqdm import tqdm

from bench.style import LINES, color, legend, plain, shades
from radam_fused.rectification import r_t, rho_inf, rho_t

from .grid import logarithmic
from .page import markdown

QUESTION = "Which linear warm-up is rectification equivalent to?"
MINUTES = 1
SIZE = (10, 4.2)  # of the picture, inches

BETA2 = [0.5, 0.6, 0.8, 0.9, 0.99, 0.999, 0.9999]
THRESHOLDS = [4.0, 5.0]
LONGEST = 40.0  # number of steps, in units of 1 / (1 - beta2)
WARM_UPS = [100, 500, 1000, 2000, 4000]


def _first(beta2: float, threshold: float) -> int | None:
    """The first rectified step."""
    if rho_inf(beta2) <= threshold:
        return None
    return next(t for t in range(1, 10**6) if rho_t(t, beta2) > threshold)


def measure(longest: float = LONGEST) -> dict[str, Any]:
    """Measure the data of the picture.

    Args:
        longest: Number of steps that the equal warm-up counts, in units of 1 / (1 - beta2).
    """
    curves, grid = {}, sorted(logarithmic(100_000, 25))
    for beta2 in tqdm(BETA2, "beta2"):
        first = {str(threshold): _first(beta2, threshold) for threshold in THRESHOLDS}
        r = [r_t(t, beta2) for t in range(1, round(longest / (1 - beta2)) + 1)]
        rectified = first["5.0"] is not None
        curves[str(beta2)] = {
            "t": grid,
            "rho": [rho_t(t, beta2) for t in grid],
            "r": [r_t(t, beta2) for t in grid],
            "rho_inf": rho_inf(beta2),
            "first rectified": first,
            "first r": {
                str(threshold): r_t(first[str(threshold)], beta2, threshold)
                for threshold in THRESHOLDS
                if first[str(threshold)]
            },
            "steps to 0.9": next(t for t, x in enumerate(r, 1) if x >= 0.9) if rectified else None,
            # A linear warm-up over n steps loses n / 2 of them.
            "equal warm-up": 2 * sum(1 - x for x in r) if rectified else None,
        }
    return {"settings": {"longest": longest}, "curves": curves}


def table(results: dict[str, Any]) -> str:
    rows = []
    for beta2, curve in results["curves"].items():
        begins = []
        for threshold in map(str, THRESHOLDS):
            first = curve["first rectified"][threshold]
            begins += [first or "never", f"{curve['first r'][threshold]:.4f}" if first else ""]
        reached, equal = curve["steps to 0.9"], curve["equal warm-up"]
        rows.append(
            [
                beta2,
                f"{curve['rho_inf']:.0f}",
                *begins,
                reached or "",
                f"{equal:.0f}" if equal else "",
                f"{2 / (1 - float(beta2)):.0f}",
            ]
        )
    head = ["beta2", "rho_inf", "first t, rho_t > 4", "its r_t", "first t, rho_t > 5", "its r_t"]
    head += ["t where r_t >= 0.9", "equal linear warm-up", "2 / (1 - beta2)"]
    return markdown(rows, head)


def draw(results: dict[str, Any], figure: Any) -> None:
    left, middle, right = figure.subplots(1, 3)
    curves = results["curves"]
    for shade, (beta2, curve) in zip(shades(len(curves)), curves.items(), strict=True):
        left.loglog(curve["t"], curve["rho"], color=shade, label=f"beta2 = {beta2}")
        middle.semilogx(curve["t"], curve["r"], color=shade)
    for threshold in THRESHOLDS:
        left.axhline(threshold, color="#606060", lw=0.8, ls=":")
    left.set(xlabel="step t", ylabel="rho_t", title="rho_t; dotted: thresholds 4 and 5")
    middle.set(xlabel="step t", ylabel="r_t", title="r_t; 0 is not rectified")
    curve = curves["0.999"]
    times = [t for t in curve["t"] if t <= 10_000]
    right.plot(times, curve["r"][: len(times)], color=color("RAdam"), label="r_t, beta2 = 0.999")
    for length, style in zip(WARM_UPS, [*LINES, (0, (1, 4))], strict=True):
        values = [min(1.0, t / length) for t in times]
        label = f"warm-up over {length:,}"
        right.plot(times, values, ls=style, lw=1, color="#808080", label=label)
    right.set(xlabel="step t", xscale="log", title="r_t and linear warm-ups")
    right.set_ylabel("factor on the learning rate")
    plain(left, middle, right)
    legend(figure, (left, right))
