//! What `graccl tune` says.

use graccl::tune::Run;

use super::bench::Bench;
use super::probe::Runs;

/// What the ranks are.
pub fn head(bench: &Bench) {
    bench.say(format_args!(
        "# graccl version {}, cpu kernels: {}\n# {} ranks on {} host(s), {}",
        env!("CARGO_PKG_VERSION"),
        graccl::reduce::level(),
        bench.job.size,
        bench.layout.groups.len(),
        bench.layout.transport(),
    ));
}

/// Measured and predicted.
pub fn runs(bench: &Bench, runs: &Runs) {
    let mut all: Vec<(&Run, bool)> = runs.fitted.iter().map(|r| (r, true)).collect();
    all.extend(runs.checks.iter().map(|r| (r, false)));
    if all.is_empty() {
        return;
    }
    all.sort_by_key(|(r, _)| (r.bytes, r.choice.algorithm.name));
    bench.say(format_args!(
        "#\n#  collective       bytes  algorithm              measured us  predicted us  error %    (*: fitted to)"
    ));
    for (r, fitted) in all {
        bench.say(format_args!(
            "   {:<11} {:>10}  {:<20} {:>13.2} {:>13.2} {:>+8.1}{}",
            r.place.collective.name(),
            r.bytes,
            r.choice.algorithm.name,
            r.measured / 1e3,
            r.predicted / 1e3,
            100.0 * r.error(),
            if fitted { " *" } else { "" }
        ));
    }
    for (what, runs) in [("only predicted", &runs.checks), ("fitted to", &runs.fitted)] {
        let off: Vec<f64> = runs.iter().map(|r| r.error().abs()).collect();
        let within = off.iter().filter(|e| **e <= 0.15).count();
        let mean = 100.0 * off.iter().sum::<f64>() / off.len().max(1) as f64;
        bench.say(format_args!(
            "# {what}: mean error {mean:.1} %; within 15 % at {within} of {} points",
            runs.len()
        ));
    }
}

/// For the profile's readers.
pub fn about(bench: &Bench) -> Vec<(String, String)> {
    let text = |k: &str, v: String| (k.to_string(), v);
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu =
        cpu.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ").map(|p| p.1.to_string()));
    vec![
        text("graccl", env!("CARGO_PKG_VERSION").into()),
        text("cpu", cpu.unwrap_or_default()),
        text("kernels", graccl::reduce::level().into()),
        text(
            "ranks",
            format!(
                "{} on {} host(s), {}",
                bench.job.size,
                bench.layout.groups.len(),
                bench.layout.transport()
            ),
        ),
    ]
}
