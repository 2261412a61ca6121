"""The layers of the code, checked and drawn from its imports.

Command: python -m docs.layout docs/layout.svg
A package imports packages of lower layers alone, wherever in a module the import stands; within a
package, no modules import each other in a circle.
"""

import ast
import pathlib
import sys
from collections.abc import Iterable, Iterator

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE, KERNELS = "mosaicbert_jax", "pallas_kernels"
# From the lowest to the highest. Names are packages or modules of mosaicbert_jax.
LAYERS: tuple[tuple[str, ...], ...] = (
    (KERNELS, "errors", "progress"),
    ("buckets", "files", "parallel", "launch", "hosts", "markdown"),
    ("lease",),
    ("text", "modeling"),
    ("data", "interop"),
    ("preparation", "storage"),
    ("training",),
    ("pretraining", "finetuning"),
    ("conversion", "prediction", "planning", "reporting"),
    ("commands",),
)
# from_pretrained and save_pretrained import interop when they are called.
DECLARED = {("modeling", "interop")}


def modules() -> dict[str, pathlib.Path]:
    """The file of each module, by its dotted name."""
    found = {}
    for package in (PACKAGE, KERNELS):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            if "torch_model" not in name and not name.endswith("__main__"):
                found[name.removesuffix(".__init__")] = path
    return found


def imports(path: pathlib.Path, known: Iterable[str]) -> Iterator[str]:
    """The modules, among those known, that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def place_of(module: str) -> str:
    """The package or top module that a module belongs to; "" for mosaicbert_jax itself."""
    if module.split(".")[0] == KERNELS:
        return KERNELS
    return module.removeprefix(PACKAGE).lstrip(".").split(".")[0]


def module_edges() -> set[tuple[str, str]]:
    """(module, module that it imports)."""
    known = modules()
    return {
        (name, target)
        for name, path in known.items()
        for target in imports(path, known)
        if target in known and target != name
    }


def place_edges() -> set[tuple[str, str]]:
    """The same between packages and top modules."""
    pairs = {(place_of(one), place_of(other)) for one, other in module_edges()}
    return {(one, other) for one, other in pairs if one and other and one != other}


def direct_edges() -> set[tuple[str, str]]:
    """The edges between packages that no path of others makes superfluous."""
    edges = place_edges()

    def reaches(one: str, other: str) -> bool:
        return any(n == other or reaches(n, other) for m, n in edges - DECLARED if m == one)

    return DECLARED | {
        (one, other)
        for one, other in edges - DECLARED
        if not any(reaches(n, other) for m, n in edges - DECLARED if m == one and n != other)
    }


def upward() -> list[tuple[str, str]]:
    """Imports of a package of the same layer or a higher one, which there must be none of."""
    layer = {name: number for number, names in enumerate(LAYERS) for name in names}
    return sorted(
        (one, other) for one, other in place_edges() - DECLARED if layer[one] <= layer[other]
    )


def circles() -> list[str]:
    """Modules of one package that import each other in a circle, which there must be none of."""
    edges = {(a, b) for a, b in module_edges() if place_of(a) == place_of(b)}
    while True:
        importing = {a for a, _ in edges}
        left = {(a, b) for a, b in edges if b in importing}
        if left == edges:
            return sorted(importing)
        edges = left


def draw(path: pathlib.Path) -> None:
    """Writes the picture: a row for each layer, an arrow for each import that no others imply."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "layout"
    from matplotlib import pyplot

    lines: dict[str, int] = {}
    for name, file in modules().items():
        lines[place_of(name)] = lines.get(place_of(name), 0) + len(file.read_text().splitlines())
    places = {
        name: ((number + 1) / (len(names) + 1), row)
        for row, names in enumerate(LAYERS)
        for number, name in enumerate(names)
    }
    figure, axes = pyplot.subplots(figsize=(11, 8), layout="constrained")
    axes.set(xlim=(0, 1), ylim=(-0.6, len(LAYERS) - 0.4))
    axes.axis("off")
    boxes = {
        name: axes.text(
            x, y, f"{name}\n{lines[name]:,} lines", ha="center", va="center", fontsize=9, zorder=3,
            bbox={"boxstyle": "round,pad=0.4", "facecolor": "#eef3fb", "edgecolor": "#5b7db1"},
        )
        for name, (x, y) in places.items()
    }  # fmt: skip
    figure.canvas.draw()  # places the boxes, at which arrows end
    for one, other in sorted(direct_edges()):
        axes.annotate(
            "", places[other], places[one], zorder=1,
            arrowprops={
                "arrowstyle": "-|>", "color": "#8894a8", "shrinkA": 0, "shrinkB": 1,
                "patchA": boxes[one].get_bbox_patch(), "patchB": boxes[other].get_bbox_patch(),
                "linestyle": "--" if (one, other) in DECLARED else "-",
                "connectionstyle": "arc3,rad=0.08",
            },
        )  # fmt: skip
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    draw(pathlib.Path(sys.argv[1]))
