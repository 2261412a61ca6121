"""A plan as a picture: time and price over the number of nodes."""

import pathlib

from matplotlib.figure import Figure

from mosaicbert_jax.planning.plan_report import Plan


def draw(plan: Plan, path: str | pathlib.Path) -> None:
    """Hours on the left and tokens a second on the right, from fast to slow."""
    found = [one for one in plan.predictions.values() if one is not None]
    nodes = [one.nodes for one in found]
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis, name, values in (
        (left, "hours of the run, predicted", [one.hours for one in found]),
        (right, "million tokens/s, predicted", [one.tokens_per_second for one in found]),
    ):
        scale = 1e-6 if axis is right else 1.0
        fast, slow = ([getattr(one, end) * scale for one in values] for end in ("fast", "slow"))
        axis.fill_between(nodes, fast, slow, alpha=0.15)
        axis.plot(nodes, fast, "o-", label="fast")
        axis.plot(nodes, slow, "o-", label="slow")
        if values[0].published is not None:
            published = [one.published * scale for one in values]
            axis.plot(nodes, published, "o--", label="as fast as the published runs")
        ideal = [fast[0] * (nodes[0] / n if axis is left else n / nodes[0]) for n in nodes]
        axis.plot(nodes, ideal, ":", color="gray", label="perfect scaling")
        axis.set(
            xlabel=f"nodes of {plan.workload.devices} GPUs", ylabel=name, xscale="log", yscale="log"
        )
        axis.set_xticks(nodes, [str(n) for n in nodes])
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    links = plan.workload.links
    figure.suptitle(
        f"{plan.parameters:,} parameters, {plan.duration}, {plan.workload.kind.name}; "
        f"{links.inside / 1e9:.0f} GB/s within a node, {links.between / 1e9:.0f} between nodes",
        fontsize=10,
    )
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
