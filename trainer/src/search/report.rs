//! What a search found, as a table and as a picture.

use std::fmt::Write;

use super::{Trial, best};

/// One line for each trial, below a line of names.
pub fn csv(trials: &[Trial]) -> String {
    let mut s = String::from("round,rung,rate,warmup,trust,steps,loss\n");
    for t in trials {
        let p = &t.setting;
        let _ =
            writeln!(s, "{},{},{},{},{},{},{}", t.round, t.rung, p.rate, p.warmup, p.trust, t.steps, t.loss);
    }
    s
}

/// Of the area in which the marks are.
const LEFT: f64 = 70.0;
const TOP: f64 = 40.0;
const WIDE: f64 = 640.0;
const HIGH: f64 = 340.0;
/// Of the rounds; people who see few colours can tell them apart (Okabe and Ito).
const COLOURS: [&str; 6] = ["#999999", "#56b4e9", "#0072b2", "#009e73", "#d55e00", "#000000"];

/// Loss over learning rate, both on logarithmic scales. A round has a colour; the longer a training, the larger its
/// mark; the best has a ring. What diverged lies on the upper edge.
///
/// # Panics
/// If there are no trials.
pub fn svg(trials: &[Trial]) -> String {
    let winner = best(trials);
    let scale = |values: &[f64]| {
        let good = || values.iter().copied().filter(|v| v.is_finite() && *v > 0.0);
        let (low, high) = (good().fold(f64::INFINITY, f64::min), good().fold(0.0, f64::max));
        if low < high {
            (low.log10(), high.log10())
        } else {
            (high.max(1e-9).log10() - 1.0, high.max(1e-9).log10() + 1.0)
        }
    };
    let (left, right) = scale(&trials.iter().map(|t| t.setting.rate).collect::<Vec<_>>());
    let (low, high) = scale(&trials.iter().map(|t| t.loss).collect::<Vec<_>>());
    let x = |rate: f64| LEFT + WIDE * (0.04 + 0.92 * (rate.log10() - left) / (right - left));
    let y = |loss: f64| {
        let part = (loss.max(1e-300).log10() - low) / (high - low);
        TOP + HIGH * (0.96 - 0.92 * part.clamp(0.0, 1.0 + 0.04 / 0.92))
    };
    let (width, height) = (LEFT + WIDE + 20.0, TOP + HIGH + 60.0);
    let s = &winner.setting;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">best: rate {:.4}, warm-up {:.3}, trust {:.4}: loss {:.4}</text>\n\
         <rect x=\"{LEFT}\" y=\"{TOP}\" width=\"{WIDE}\" height=\"{HIGH}\" fill=\"none\" stroke=\"#999\"/>\n",
        s.rate, s.warmup, s.trust, winner.loss
    );
    for (at, v) in [(0.0, left), (1.0, right)] {
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.2e}</text>",
            LEFT + WIDE * (0.04 + 0.92 * at),
            TOP + HIGH + 16.0,
            10f64.powf(v)
        );
    }
    for (at, v) in [(0.0, low), (1.0, high)] {
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{:.2e}</text>",
            LEFT - 6.0,
            TOP + HIGH * (0.96 - 0.92 * at) + 4.0,
            10f64.powf(v)
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">learning rate</text>\
         <text transform=\"translate(16 {:.1}) rotate(-90)\" text-anchor=\"middle\">loss</text>",
        LEFT + WIDE / 2.0,
        TOP + HIGH + 34.0,
        TOP + HIGH / 2.0
    );
    let mut mark = |t: &Trial, radius: f64, style: &str| {
        let (x, y) = (x(t.setting.rate), y(t.loss));
        let _ = writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" {style}/>");
    };
    for t in trials {
        let colour = COLOURS[t.round % COLOURS.len()];
        mark(t, 2.0 + 1.5 * t.rung as f64, &format!("fill=\"{colour}\" fill-opacity=\"0.7\""));
    }
    mark(winner, 12.0, "fill=\"none\" stroke=\"#d55e00\" stroke-width=\"2\"");
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::super::Setting;
    use super::*;

    fn trials() -> Vec<Trial> {
        let trial = |rung, rate, loss| {
            let setting = Setting { rate, warmup: 0.1, trust: 0.001 };
            Trial { round: 0, rung, setting, steps: 10 + rung as u64, loss }
        };
        vec![trial(0, 0.1, 0.5), trial(0, 10.0, f64::INFINITY), trial(1, 1.0, 0.05)]
    }

    #[test]
    fn a_line_for_every_trial() {
        let text = csv(&trials());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[2], "0,0,10,0.1,0.001,10,inf");
    }

    #[test]
    fn marks_lie_where_they_should() {
        let text = svg(&trials());
        // Rates from 0.1 to 10 across, losses from 0.05 to 0.5 up; what diverged on the upper edge.
        let at = |part: f64| LEFT + WIDE * (0.04 + 0.92 * part);
        for (x, y) in [(at(0.0), TOP + HIGH * 0.04), (at(1.0), TOP), (at(0.5), TOP + HIGH * 0.96)] {
            assert!(text.contains(&format!("cx=\"{x:.1}\" cy=\"{y:.1}\"")), "{x} {y}\n{text}");
        }
        assert_eq!(text.matches("<circle").count(), 4);
        assert!(text.contains("best: rate 1.0000"));
    }
}
