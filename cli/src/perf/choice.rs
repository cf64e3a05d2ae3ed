//! How good the choice of an algorithm is, measured beside the others.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::table::{Row, number};

/// A choice this near to the best is as good: machines are not more exact.
const NEAR: f64 = 1.1;

/// What was chosen at a point, and what was the fastest there.
pub struct Verdict {
    bytes: usize,
    chosen: String,
    chosen_us: f64,
    best: String,
    best_us: f64,
    /// All that were compared: the algorithm that was asked for, and us.
    all: Vec<(&'static str, f64)>,
}

impl Verdict {
    /// Of the rows of one point, by the times that they have beside each other, us; `None` without the choice
    /// among them.
    pub fn of(rows: &[Row], compared: &[f64]) -> Option<Verdict> {
        let both = || rows.iter().zip(compared);
        let (chosen, &chosen_us) = both().find(|(r, _)| r.beside.is_none())?;
        let (best, &best_us) = both().min_by(|a, b| a.1.total_cmp(b.1))?;
        Some(Verdict {
            bytes: chosen.bytes,
            chosen: chosen.plan.clone(),
            chosen_us,
            best: best.plan.clone(),
            best_us,
            all: both().map(|(r, &us)| (r.beside.unwrap_or("auto"), us)).collect(),
        })
    }

    /// Time of the choice in times of the best.
    fn ratio(&self) -> f64 {
        if self.best_us > 0.0 { self.chosen_us / self.best_us } else { 1.0 }
    }

    pub fn line(&self) -> String {
        format!(
            "# {} bytes: chosen {} {} us, best {} {} us, chosen/best {:.2}\n",
            self.bytes,
            self.chosen,
            number(self.chosen_us, 7),
            self.best,
            number(self.best_us, 7),
            self.ratio()
        )
    }

    pub fn json(&self) -> Value {
        json!({
            "chosen": self.chosen, "chosen_us": self.chosen_us, "best": self.best, "best_us": self.best_us,
            "ratio": self.ratio(), "all_us": self.all.iter().copied().collect::<BTreeMap<_, _>>(),
        })
    }
}

/// The verdicts of all points.
#[derive(Default)]
pub struct Tally {
    pub points: usize,
    near: usize,
    worst: Option<(f64, usize, String)>,
}

impl Tally {
    pub fn add(&mut self, verdict: &Verdict) {
        self.points += 1;
        self.near += usize::from(verdict.ratio() <= NEAR);
        if self.worst.as_ref().is_none_or(|w| verdict.ratio() > w.0) {
            self.worst = Some((verdict.ratio(), verdict.bytes, verdict.best.clone()));
        }
    }

    fn share(&self) -> f64 {
        self.near as f64 / self.points.max(1) as f64
    }

    pub fn line(&self) -> String {
        let worst = self.worst.as_ref().map_or(String::new(), |(ratio, bytes, best)| {
            format!("; worst {ratio:.2} at {bytes} bytes, where {best} is the best")
        });
        let percent = (NEAR - 1.0) * 100.0;
        format!(
            "# {:<20} : within {percent:.0} % of the best at {} of {} points ({:.0} %){worst}\n",
            "Choice",
            self.near,
            self.points,
            self.share() * 100.0
        )
    }

    pub fn json(&self) -> Value {
        let worst = self.worst.as_ref().map(|w| w.0);
        json!({
            "points": self.points, "within_10_percent": self.near, "share": self.share(), "worst_ratio": worst,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::Timing;
    use super::*;

    fn row(beside: Option<&'static str>) -> Row {
        let t = Timing { time_us: 99.0, algbw: 0.0, busbw: 0.0, wrong: None };
        Row {
            bytes: 64,
            count: 16,
            dtype: "float",
            op: "sum",
            root: None,
            out_of_place: t,
            in_place: None,
            spread: Default::default(),
            plan: beside.unwrap_or("chosen one").into(),
            beside,
            timestamp: None,
        }
    }

    #[test]
    fn the_choice_is_compared_with_the_fastest() {
        let mut tally = Tally::default();
        for (chosen, ring, tree, ratio, best) in
            [(3.0, 2.0, 4.0, 1.5, "ring"), (1.0, 2.0, 3.0, 1.0, "chosen one"), (1.1, 1.0, 9.0, 1.1, "ring")]
        {
            let rows = [row(None), row(Some("ring")), row(Some("tree"))];
            let v = Verdict::of(&rows, &[chosen, ring, tree]).unwrap();
            assert_eq!((v.ratio(), v.best.as_str()), (ratio, best));
            assert_eq!(v.json()["all_us"], json!({ "auto": chosen, "ring": ring, "tree": tree }));
            tally.add(&v);
        }
        assert!(Verdict::of(&[row(Some("ring"))], &[1.0]).is_none());
        let text = tally.line();
        assert!(text.contains("within 10 % of the best at 2 of 3 points (67 %); worst 1.50 at 64"), "{text}");
        assert_eq!(tally.json()["within_10_percent"], 2);
    }
}
