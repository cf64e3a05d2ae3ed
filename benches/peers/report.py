"""Raw rows -> Markdown: graccl against the best peer, per case and state of the machine."""

import statistics

from cases import BY_NAME, human

BENCH_COLUMNS = "peer transport dtype place ranks bytes median_us p99_us min_us loop_us busbw_GBs iters line_ns mode".split()
COLUMNS = ["case", "pass"] + BENCH_COLUMNS
STATES = ["near", "far", "same"]


def read(paths):
    """(environment lines, rows) of raw files."""
    environment, rows = [], []
    for path in paths:
        with open(path) as f:
            for line in f:
                line = line.rstrip("\n")
                cells = line.split("\t")
                if line.startswith("# "):
                    if line[2:] not in environment:
                        environment.append(line[2:])
                elif len(cells) == len(COLUMNS) and cells != COLUMNS:
                    rows.append(dict(zip(COLUMNS, cells)))
    return environment, rows


def _us(v):
    return f"{v:.3f}" if v < 10 else f"{v:.1f}" if v < 1000 else f"{v:.0f}"


def _line(case, state, nbytes, rows):
    """Cells of one size in one state, and whether the bar was reached (None: cannot be said)."""
    times, everywhere = {}, set()
    for r in rows:
        if r["peer"] != case.ours:
            everywhere.add(r["peer"])
        if r["mode"] == state:
            times.setdefault(r["peer"], []).append(float(r["median_us"]))
    mine = times.pop(case.ours, [])
    # our own passes count by their median, on either side; a peer by its best pass
    theirs = {p: statistics.median(t) if p.partition("/")[0] == "graccl" else min(t) for p, t in times.items()}
    seen = f"{len(theirs)}/{len(everywhere)}"
    ours = statistics.median(mine) if mine else None
    us = f"{_us(ours)} ({len(mine)})" if mine else "-"
    if not theirs:
        return [us, "-", "-", seen, "-", "-", "-", "no peer"], None
    peer = min(theirs, key=theirs.get)
    best = theirs[peer]
    if not mine:
        return [us, peer, _us(best), seen, "-", "-", "-", "no graccl"], None
    ratio, bar = best / ours, case.bar(nbytes, state)
    if bar is None:
        ok, verdict = None, "-"
    elif ratio < bar:
        ok, verdict = False, f"{100 * (1 - ratio / bar):.0f} % short"
    elif len(theirs) < len(everywhere):  # a peer not seen in this state may be faster
        ok, verdict = None, "so far"
    else:
        ok, verdict = True, "reached"
    return [us, peer, _us(best), seen, f"{ratio:.2f}", f"{best / min(mine):.2f}", f"{bar:g}" if bar else "-", verdict], ok


def report(environment, rows):
    out = [f"_{e}_\n" for e in environment]
    verdicts = []
    for name, case in BY_NAME.items():
        for state in STATES:
            sizes = sorted({int(r["bytes"]) for r in rows if r["case"] == name and r["mode"] == state})
            if not sizes:
                continue
            out.append(f"### {name}, {state}\n\n{case.title}.\n")
            out.append(f"| size | {case.ours} us (passes) | best peer | us | peers seen | ratio | by our best pass | bar | verdict |")
            out.append("|---|---|---|---|---|---|---|---|---|")
            for n in sizes:
                cells, ok = _line(case, state, n, [r for r in rows if r["case"] == name and int(r["bytes"]) == n])
                if ok is not None:
                    verdicts.append(ok)
                out.append("| " + " | ".join([human(n)] + cells) + " |")
            out.append("")
    dropped = sum(r["mode"] not in STATES for r in rows)
    out.append(f"{sum(verdicts)} of {len(verdicts)} bars reached; {dropped} of {len(rows)} rows dropped because the cores moved meanwhile.")
    return "\n".join(out)
