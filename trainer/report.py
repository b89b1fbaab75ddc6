"""What a run's folder tells, as a text for a person."""

from .run import RunInfo


def run_report(run: RunInfo) -> str:
    """Returns name, state, what differs from the defaults, data, figures and files of a run."""
    manifest, status = run.manifest, run.status
    given = [
        f"{name} {entry['value']}"
        for group in manifest.get("origins", {}).values()
        for name, entry in group.items()
        if entry["origin"] == "given" and name != "run_name"
    ]
    lines = [
        f"Run {run.name} ({run.folder.name}): {status.get('state', 'unknown')}, step {int(status.get('step', 0))} of "
        f"{int(manifest['total_steps'])}.",
    ]
    if status.get("reason"):
        lines.append(f"Reason: {status['reason']}")
    data, base = manifest.get("data", {}), manifest.get("base", {})
    lines.append(f"Base: {base.get('name', '?')} ({str(base.get('sha256', ''))[:10]}).")
    lines.append(f"Data: {data.get('name', '?')}, {data.get('num_images', '?')} pictures.")
    lines.append(f"Differs from the defaults: {', '.join(given) if given else 'nothing'}.")
    if manifest.get("config", {}).get("parent"):
        lines.append(f"Continues the run {str(manifest['config']['parent'])[:8]}.")
    lines.extend(_figures(run))
    lines.extend(f"Checkpoint: step {step}, {path.stat().st_size / 2**20:.2f} MiB." for step, path in run.checkpoints)
    return "\n".join(lines)


def _figures(run: RunInfo) -> list[str]:
    if not run.rows:
        return []
    losses = [row["loss"] for row in run.rows]
    part = max(1, len(losses) // 10)
    first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
    seconds = run.rows[-1]["seconds"]
    return [
        f"Loss: {first:.4f} over the first {part} steps, {last:.4f} over the last {part}.",
        f"Time: {seconds:.1f} s for {len(losses)} steps, {int(run.rows[-1]['images_seen'])} pictures seen.",
    ]
