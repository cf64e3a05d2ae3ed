"""How many times faster hier_2d is than flat algorithms: measured, and predicted by the model, from profiles.

    factor.py [--title TEXT] [--svg FILE] PROFILE..

The profiles are those that `graccl tune` writes: their [[run]] rows have both times.
"""

import argparse
import math
import tomllib

NEAR = 0.2


def factors(profile):
    """[(job, flat algorithm, [(bytes, measured, predicted)])]"""
    with open(profile, "rb") as f:
        runs = tomllib.load(f).get("run", [])
    times = {}
    for r in runs:
        job = (r["ranks"], r["hosts"], r["transport"])
        times[job, r["algorithm"], r["bytes"]] = (r["measured"], r["predicted"])
    out = []
    for job in sorted({k[0] for k in times}):
        for flat in ("ring", "direct"):
            points = []
            for bytes_ in sorted({k[2] for k in times}):
                a, b = times.get((job, flat, bytes_)), times.get((job, "hier_2d", bytes_))
                if a and b:
                    points.append((bytes_, a[0] / b[0], a[1] / b[1]))
            if points:
                out.append((job, flat, points))
    return out


def size(b):
    for unit, s in (("M", 1 << 20), ("K", 1 << 10)):
        if b >= s:
            return f"{b / s:g}{unit}"
    return str(b)


def svg(series, title):
    jobs = sorted({s[0] for s in series})
    wide, high, left, top, gap = 300, 260, 50, 50, 50
    flats = ("ring", "direct")
    colours = {"ring": "#1f6fb4", "direct": "#c8501e"}
    all_points = [p for s in series for p in s[2]]
    lo, hi = math.log2(min(p[0] for p in all_points)), math.log2(max(p[0] for p in all_points))
    most = max(max(p[1], p[2]) for p in all_points)
    top_y = 2 ** math.ceil(math.log2(max(most, 2)))
    low_y = min(min(p[1], p[2]) for p in all_points)
    low_y = min(0.5, 2 ** math.floor(math.log2(low_y)))
    y_of = lambda v: top + high * (1 - math.log2(v / low_y) / math.log2(top_y / low_y))
    width = left + len(jobs) * (wide + gap)
    text = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top + high + 80}" font-family="sans-serif" font-size="12">',
        f'<rect width="100%" height="100%" fill="white"/><text x="{left}" y="20" font-size="15">hier_2d against flat allreduce, {title}: times faster</text>',
    ]
    for i, job in enumerate(jobs):
        x0 = left + i * (wide + gap)
        x_of = lambda b: x0 + wide * (math.log2(b) - lo) / max(hi - lo, 1)
        text.append(f'<text x="{x0}" y="{top - 10}">{job[0]} ranks on {job[1]} hosts</text>')
        v = low_y
        while v <= top_y:
            y = y_of(v)
            dark = "#888" if v == 1 else "#ddd"
            text.append(f'<line x1="{x0}" y1="{y:.1f}" x2="{x0 + wide}" y2="{y:.1f}" stroke="{dark}"/>')
            text.append(f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{v:g}</text>')
            v *= 2
        b = 4
        while math.log2(b) <= hi:
            text.append(f'<text x="{x_of(b):.1f}" y="{top + high + 18}" text-anchor="middle">{size(b)}</text>')
            b *= 16
        for job_, flat, points in series:
            if job_ != job:
                continue
            for column, dash in ((1, ""), (2, ' stroke-dasharray="5 4"')):
                line = " ".join(f"{x_of(p[0]):.1f},{y_of(p[column]):.1f}" for p in points)
                text.append(f'<polyline points="{line}" fill="none" stroke="{colours[flat]}" stroke-width="2"{dash}/>')
            text += [f'<circle cx="{x_of(p[0]):.1f}" cy="{y_of(p[1]):.1f}" r="3" fill="{colours[flat]}"/>' for p in points]
    y = top + high + 50
    for i, flat in enumerate(flats):
        x = left + i * 260
        text.append(f'<line x1="{x}" y1="{y}" x2="{x + 30}" y2="{y}" stroke="{colours[flat]}" stroke-width="2"/>')
        text.append(f'<text x="{x + 36}" y="{y + 4}">against {flat}: measured,</text>')
        text.append(f'<line x1="{x + 165}" y1="{y}" x2="{x + 190}" y2="{y}" stroke="{colours[flat]}" stroke-width="2" stroke-dasharray="5 4"/>')
        text.append(f'<text x="{x + 196}" y="{y + 4}">predicted</text>')
    return "\n".join(text + ["</svg>"]) + "\n"


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--title", default="")
    ap.add_argument("--svg")
    ap.add_argument("profiles", nargs="+")
    a = ap.parse_args()
    series = [s for p in a.profiles for s in factors(p)]
    print("# times faster than flat:  measured  predicted   off")
    near = total = 0
    for job, flat, points in series:
        for bytes_, measured, predicted in points:
            off = predicted / measured - 1
            near += abs(off) <= NEAR
            total += 1
            print(f"{job[0]:3} ranks {job[1]} hosts {flat:8} {size(bytes_):>6} {measured:9.2f} {predicted:9.2f} {100 * off:+6.0f} %")
    print(f"# predicted within {100 * NEAR:.0f} % at {near} of {total} points")
    if a.svg and series:
        with open(a.svg, "w") as f:
            f.write(svg(series, a.title))


if __name__ == "__main__":
    main()
