"""Raw rows -> Markdown: graccl against the best peer, per case and state of the machine."""

import statistics

from cases import BY_NAME, human

BENCH_COLUMNS = "peer transport collective dtype place ranks bytes median_us p99_us min_us loop_us busbw_GBs iters line_ns mode".split()
COLUMNS = ["case", "pass"] + BENCH_COLUMNS
OVERLAP_COLUMNS = "peer transport overlap ranks bytes alone beside during async_us blocking_us line_ns mode".split()
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


def _tables():
    """(title, cases, in more words): a table for each case of all_reduce, one for all of another collective."""
    out = [(c.name, [c], c.title + ".") for c in BY_NAME.values() if c.collective == "all_reduce"]
    for collective in dict.fromkeys(c.collective for c in BY_NAME.values()):
        cases = [c for c in BY_NAME.values() if c.collective == collective]
        if collective != "all_reduce":
            out.append((collective, cases, cases[0].title + "."))
    return out


def report(environment, rows):
    out = [f"_{e}_\n" for e in environment]
    verdicts = []
    for title, cases, about in _tables():
        several = len(cases) > 1
        for state in STATES:
            lines = []
            for case in cases:
                mine = [r for r in rows if r["case"] == case.name]
                for n in sorted({int(r["bytes"]) for r in mine if r["mode"] == state}):
                    cells, ok = _line(case, state, n, [r for r in mine if int(r["bytes"]) == n])
                    if ok is not None:
                        verdicts.append(ok)
                    lines.append("| " + " | ".join([case.name] * several + [human(n) if n else "-"] + cells) + " |")
            if not lines:
                continue
            out.append(f"### {title}, {state}\n\n{about}\n")
            out.append(f"|{' case |' * several} size | {cases[0].ours} us (passes) | best peer | us | peers seen | ratio | by our best pass | bar | verdict |")
            out.append("|---" * several + "|---|---|---|---|---|---|---|---|---|")
            out += lines + [""]
    dropped = sum(r["mode"] not in STATES for r in rows)
    out.append(f"{sum(verdicts)} of {len(verdicts)} bars reached; {dropped} of {len(rows)} rows dropped because the cores moved meanwhile.")
    return "\n".join(out)


def report_overlap(rows):
    out = [
        "| library | core left to the caller | beside a copying rank | non-blocking us | blocking us | cache line ns | state |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in (dict(zip(OVERLAP_COLUMNS, row)) for row in rows):
        left = f"{100 * float(r['during']):.1f} %"
        beside = f"{100 * float(r['beside']):.1f} %"
        out.append(f"| {r['peer']} | {left} | {beside} | {r['async_us']} | {r['blocking_us']} | {r['line_ns']} | {r['mode']} |")
    return "\n".join(out)
