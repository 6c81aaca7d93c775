"""Recipes and targets to try a module with, as the text that makes them."""

from __future__ import annotations

from random import Random

# No VNNI is asked of the machine: weights of 7 bits beside integers that flow, or sums of products may saturate.
SAFE = "lp.targets.OnnxRuntime(threads=1, seconds=0, safe=True)"
TARGETS = {
    SAFE: 12,
    "lp.targets.OpenVino(threads=1, seconds=0)": 3,
    "lp.targets.OnnxRuntime(threads=1, seconds=0, safe=True, profile='tensorrt')": 1,
    "lp.targets.OnnxRuntime(threads=1, seconds=0, safe=True, profile='xnnpack')": 1,
    "lp.targets.OnnxRuntime(threads=1, seconds=0, safe=True, profile='openvino')": 1,
}
WEIGHTS = (
    "Int(7)",
    "Int(7)",
    "Int(8)",
    "Int(4)",
    "Int(3, group=4)",
    "Int(8, per='tensor')",
    "Int(7, symmetric=False)",
    "Int(4, scale=lp.formats.Float16())",
    "Codebook(16)",
    "Codebook(4, per='channel')",
    "PowerOfTwo(4)",
    "PowerOfTwo(5, terms=2)",
    "NF4()",
    "MiniFloat()",
    "MiniFloat('e2m1', group=4)",
    "Blockwise(4, group=4)",
    "Signs()",
    "Fixed(1, 6)",
    "Float16()",
    "BFloat16()",
    "MiniFloat('e5m2')",
    "Sparse(lp.Int(7))",
)
ACTIVATIONS = (
    "",
    "",
    "",
    "Int(8)",
    "Int(8)",
    "Int(8)",
    "Int(8, dynamic=True)",
    "Int(8, dynamic=True)",
    "Int(4)",
    "Int(8, symmetric=True)",
    "Fixed(3, 4)",
    "PowerOfTwo(4)",
    "MiniFloat()",
    "Blockwise(4, group=4)",
)
FITS = ("", "", "", "MinMax()", "Percentile(99.0)", "HQQ()")
CALIBRATIONS = ("", "", "MinMax()", "Percentile(99.0)", "Entropy()")
ROUNDINGS = ("", "", "", "", "GPTQ()", "AdaRound(steps=4)", "BRECQ(steps=4, blocks='a*')")
PRUNES = (
    "'weights', 0.5",
    "'weights', 0.5, scope='global'",
    "'channels', 0.5",
    "'channels', 0.5, multiple=1",
    "'channels', parameters=0.6, multiple=1",
    "'channels', 0.5, scope='global', multiple=1",
    "'channels', macs=0.6, multiple=1",
    "'channels', threshold=0.9, multiple=1",
    "'heads', 0.5",
    "'layers', 0.5",
    "'blocks', 0.5",
)
EQUALIZES = ("CrossLayer()", "SmoothQuant()", "AWQ(steps=2)")
SHARES = ("16", "4, per='channel'", "8, group=4")
FINE = ("Int(7", "Int(8", "Float16", "BFloat16", "Sparse(lp.Int(7")  # whose rounding is small


def named(made: str) -> str:
    """The text that makes something, with the place of its name.

    >>> named("Int(7)"), named("GPTQ()")
    ('lp.Int(7)', 'lp.rounding.GPTQ()')
    """
    import lilliput as lp

    name = made.partition("(")[0]
    return next((f"lp.{space}.{made}" for space, names in lp._NAMESPACES.items() if name in names), f"lp.{made}")


def quantize(random: Random) -> str:
    parts = [f"weights={named(random.choice(WEIGHTS))}"]
    for key, choices in (
        ("activations", ACTIVATIONS),
        ("fit", FITS),
        ("calibration", CALIBRATIONS),
        ("rounding", ROUNDINGS),
    ):
        drawn = random.choice(choices)
        if drawn and (key != "calibration" or "activations" in parts[-1] or len(parts) > 2):
            parts.append(f"{key}={named(drawn)}")
    if random.random() < 0.1:
        parts.append("bias_correction=False")
    return f"lp.Quantize({', '.join(parts)})"


def draw_recipe(random: Random) -> list[str]:
    """Steps as text; none: the default of the target."""
    kind = random.choice(
        ("default",) * 4
        + ("quantize",) * 8
        + ("prune",) * 4
        + ("share", "equalize", "equalize", "finetune", "pair", "pair", "pair")
    )
    first = {
        "prune": lambda: f"lp.Prune({random.choice(PRUNES)})",
        "share": lambda: f"lp.techniques.Share({random.choice(SHARES)})",
        "equalize": lambda: f"lp.techniques.Equalize({named(random.choice(EQUALIZES))})",
        "finetune": lambda: "lp.Finetune(epochs=1, lr=1e-3)",
    }
    if kind == "default":
        return []
    if kind == "quantize":
        return [quantize(random)]
    if kind == "pair":
        return [
            first[random.choice(("prune", "equalize", "prune"))](),
            random.choice((quantize, quantize, lambda r: first["finetune"]()))(random),
        ]
    return [first[kind](), *([quantize(random)] if kind == "equalize" else [])]


def draw_target(random: Random) -> str:
    return random.choices(list(TARGETS), list(TARGETS.values()))[0]


def sound(recipe: list[str]) -> bool:
    """Whether the recipe is one that `Recipe` takes: others are refused before any work, and show nothing."""
    import lilliput as lp
    from lilliput.errors import LilliputError

    try:
        if recipe:
            lp.Recipe([eval(step, {"lp": lp}) for step in recipe])
    except LilliputError:
        return False
    return True


def floats_flow(recipe: list[str]) -> bool:
    """Whether nothing that flows is rounded."""
    return bool(recipe) and not any("activations" in step for step in recipe)


def weights_alone(recipe: list[str]) -> bool:
    """Whether nothing but the numbers of tensors is changed."""
    structural = any(step.startswith("lp.Prune") and "'weights'" not in step for step in recipe)
    return floats_flow(recipe) and not structural


def is_fine(recipe: list[str]) -> bool:
    """Whether answers must stay near the original's."""
    if not recipe:
        return True
    near = all(step.startswith(("lp.techniques.Equalize", "lp.Quantize")) for step in recipe)
    weights = [step.split("weights=lp.")[1] for step in recipe if "weights=" in step]
    flowing = [step.split("activations=lp.")[1] for step in recipe if "activations=" in step]
    return near and all(w.startswith(FINE) for w in weights) and all(a.startswith("Int(8") for a in flowing)
