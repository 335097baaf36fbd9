"""Ingests a source, and prints a summary."""

from lawm_jax.data import catalog, paths, records, settings, statistics, words
from lawm_jax.data.settings import Refused
from lawm_jax.ingest import plans, shards


def run(
    plan,
    out,
    *,
    given=(),
    config=None,
    encoder=None,
    workers=1,
    limit=120.0,
    part="0/1",
    only_statistics=False,
):
    """Ingests a source, or only measures the statistics of its labels, and prints the outcome.

    Args:
      plan: `plans.Plan`; `resize` 0 and `quality` -1 select the defaults of the command's flags.
      out: folder to write to.
      given: those of the names "fps", "size" and "resize" that were specified.
      config: training config that sets `fps`, `size` and `resize` instead, or None.
      encoder: training config whose encoder's states to store, or None to store frames.
      workers, limit: as in `shards.ingest`.
      part: "i/n", as in `shards.ingest`.
      only_statistics: whether to only measure the statistics of the source's labels.

    Raises:
      Refused: an argument is out of range, missing, or does not match the others.
      BlockingIOError: another process is writing the same part of `out`.
    """
    for name, value in (("config", config), ("encoder", encoder)):
        if value:
            _check_config(name, value, given)
    plan, part_of = _resolve(plan, config), _parse_part(part)
    try:
        plans.check(plan, workers, limit, part_of)
    except ValueError as error:
        raise Refused(str(error)) from error
    if only_statistics:
        _measure(plan)
        return
    if not out:
        raise Refused("out: expected a folder to write to, got none")
    out, encode = paths.expand(out), None
    if encoder:
        from lawm_jax.ingest import states  # imports jax

        plan, encode = states.prepare(plan, encoder)
    info = shards.ingest(plan, out, workers=workers, limit=limit, part=part_of, encode=encode)
    if info is None:
        print(f"{out}: part {part} is done; other parts are not done yet")
        return
    print(_summary(out, info))
    if plan.write and info["total_labelled"]:
        _measure(plan._replace(source=f"records:{out}"), replace=True)


def _check_config(name, config, given):
    """Rejects a config with invalid values, and arguments that the config also sets."""
    if given:
        raise Refused(f"{given[0]}: expected either this or --{name}, which also sets it, got both")
    try:
        settings.check(config, per_device=True)
    except ValueError as error:
        raise Refused(f"{name}: {error}") from error


def _resolve(plan, config):
    """Fills in the plan's defaults, and the view of a config."""
    plan = plan._replace(
        resize=plan.resize or plan.size * 292 // 256, least=min(plan.least, plan.frames)
    )
    if config:
        plan = plan._replace(**{key: config.data[key] for key in ("fps", "size", "resize")})
    if plan.quality == -1:
        plan = plan._replace(quality=0 if plan.size < records.RAW_BELOW else 90)
    return plan


def _parse_part(text):
    """Returns (i, n), from "i/n"."""
    part = tuple(int(n) for n in text.split("/") if n.isdecimal())
    if len(part) != 2 or "/".join(map(str, part)) != text:
        raise Refused(f"part: expected i/n with 0 <= i < n, got {text}")
    return part


def _summary(out, info):
    """Describes a complete ingest in one line."""
    counted = {key: info[f"total_{key}s"] for key in ("item", "record", "frame")}
    items, *rest = (words.counted(count, key) for key, count in counted.items())
    text = f"{out}: {counted['item'] - info['total_bad']} of {items}, {', '.join(rest)}"
    if info["total_dropped"]:
        dropped = words.counted(info["total_dropped"], "frame")
        text += f", {dropped} dropped, too few for a record"
    if bad := info["total_bad"]:
        text += f"; {words.counted(bad, 'item')} {'has' if bad == 1 else 'have'} problems, see "
        text += f"{out}/report.jsonl"
    return text


def _measure(plan, replace=False):
    """Measures the label statistics of a training source, and stores them beside the data."""
    source = plans.open_source(plan, "train")
    folder = catalog.parse("source", plan.source).folder
    path = statistics.write(folder, statistics.measure(source, plan.fps), replace=replace)
    print(f"label statistics: {path}")
