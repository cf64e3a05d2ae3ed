//! Why a plan takes as long as it does, in words.

use super::{Mode, Model, Plan, Share};

/// Milliseconds with three significant digits or so.
fn ms(ns: f64) -> String {
    match ns / 1e6 {
        ms if ms >= 100.0 => format!("{ms:.0} ms"),
        ms if ms >= 10.0 => format!("{ms:.1} ms"),
        ms if ms >= 0.1 => format!("{ms:.2} ms"),
        _ => format!("{:.1} us", ns / 1e3),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} B"),
        10_000..=9_999_999 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

impl Plan {
    /// A few sentences, one per line: what the plan does, what it leaves exposed, and what bounds it.
    pub fn why(&self, model: &Model) -> Vec<String> {
        let tensors = model.tensors();
        let compute = self.bound.compute;
        let exposed = (self.ns - compute).max(0.0);
        let mut lines = vec![format!(
            "{} gradients, {}, in {} bucket{}: an iteration takes {}, {:.1} % more than its {} of compute.",
            tensors.len(),
            size(model.bytes()),
            self.buckets.len(),
            if self.buckets.len() == 1 { "" } else { "s" },
            ms(self.ns),
            100.0 * exposed / compute.max(1.0),
            ms(compute),
        )];
        let busy: f64 = self.buckets.iter().map(|b| b.busy()).sum();
        lines.push(format!(
            "Communication takes {}; {} of it is hidden behind compute, {} is not.",
            ms(busy),
            ms((busy - exposed).max(0.0)),
            ms(exposed)
        ));
        match self.mode {
            Mode::AllReduce => {}
            Mode::Priority => {
                let later: Vec<_> = self.buckets.iter().filter(|b| b.share == Share::Forward).collect();
                let bytes = later.iter().map(|b| b.bytes).sum();
                lines.push(format!(
                    "{} of the buckets ({}) wait until the backward pass is over; then the first layers' go first.",
                    later.len(),
                    size(bytes)
                ));
            }
            Mode::ReduceScatterAllGather => lines.push(
                "Gradients are reduce-scattered during the backward pass; parameters are all-gathered during \
                 the next forward pass, the first layers' first."
                    .into(),
            ),
        }
        let last = &tensors[tensors.len() - 1];
        let bound = self.bound.ns();
        lines.push(if exposed <= 0.01 * compute {
            "Bound by compute: nearly all communication is hidden.".to_string()
        } else if self.bound.last >= self.bound.lane {
            format!(
                "Bound by the last gradient, {} ({}): it is ready when the backward pass ends, and sending it alone takes {}.",
                last.name,
                size(last.bytes()),
                ms(self.bound.last - compute)
            )
        } else {
            format!(
                "Bound by the network: what is ready after {} takes it {} in the cheapest portions, without a pause.",
                ms(self.bound.lane_from),
                ms(self.bound.lane - self.bound.lane_from - self.after(model)),
            )
        });
        lines.push(if self.ns <= bound * 1.001 {
            format!("No plan of this kind takes less than {}: this one is there.", ms(bound))
        } else if self.exact {
            format!(
                "No partition is faster; a bound that no network order can beat is {} ({:.1} % less).",
                ms(bound),
                100.0 * (1.0 - bound / self.ns)
            )
        } else {
            format!(
                "The search was cut short: a faster plan may exist, but none below {} ({:.1} % less).",
                ms(bound),
                100.0 * (1.0 - bound / self.ns)
            )
        });
        lines
    }

    /// Forward time that follows whatever the lane does last.
    fn after(&self, model: &Model) -> f64 {
        if self.mode == Mode::AllReduce { self.forward } else { model.tensors()[0].forward }
    }
}

impl super::Bucket {
    /// How long it occupies the lane, ns.
    pub fn busy(&self) -> f64 {
        let spans = [Some(self.reduce), self.gather];
        spans.into_iter().flatten().map(|s| s.end - s.start).sum()
    }
}
