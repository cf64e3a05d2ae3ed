//! Line charts as SVG.

use std::fmt::Write;

pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    /// Points only.
    pub marks: bool,
}

/// `x` on a scale of doublings, `y` from 0 to 100.
pub struct Chart {
    pub title: String,
    pub x: String,
    pub y: String,
    pub lines: Vec<Line>,
}

/// Colours that people who see few of them can tell apart (Okabe and Ito).
const COLOURS: [&str; 8] =
    ["#d55e00", "#e69f00", "#cc79a7", "#999999", "#56b4e9", "#0072b2", "#009e73", "#000000"];

/// Of the area in which the lines are.
const LEFT: f64 = 60.0;
const TOP: f64 = 40.0;
const WIDE: f64 = 640.0;
const HIGH: f64 = 340.0;

pub fn svg(c: &Chart) -> String {
    let xs = || c.lines.iter().flat_map(|l| &l.points).map(|p| p.0);
    let (low, high) = (xs().fold(f64::INFINITY, f64::min), xs().fold(0.0, f64::max));
    let (low, high) = if low < high { (low.log2(), high.log2()) } else { (0.0, 1.0) };
    let x = |v: f64| LEFT + WIDE * (v.log2() - low) / (high - low);
    let y = |v: f64| TOP + HIGH * (1.0 - v.clamp(0.0, 100.0) / 100.0);
    let (width, height) = (LEFT + WIDE + 20.0, TOP + HIGH + 60.0 + 18.0 * c.lines.len() as f64);
    let mut s = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{}</text>\n",
        escape(&c.title)
    );
    for percent in (0..=100).step_by(20) {
        let at = y(f64::from(percent));
        let _ = writeln!(
            s,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{percent}</text>",
            LEFT + WIDE,
            LEFT - 6.0,
            at + 4.0
        );
    }
    for doubling in low.ceil() as i32..=high.floor() as i32 {
        let v = 2f64.powi(doubling);
        let _ = writeln!(
            s,
            "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{1:.1}\" y2=\"{2:.1}\" stroke=\"#999\"/>\
             <text x=\"{0:.1}\" y=\"{3:.1}\" text-anchor=\"middle\">{v:.0}</text>",
            x(v),
            TOP + HIGH,
            TOP + HIGH + 5.0,
            TOP + HIGH + 18.0
        );
    }
    let _ = writeln!(
        s,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
         <text transform=\"translate(16 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        LEFT + WIDE / 2.0,
        TOP + HIGH + 36.0,
        escape(&c.x),
        TOP + HIGH / 2.0,
        escape(&c.y)
    );
    for (i, line) in c.lines.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        if !line.marks {
            let points: Vec<String> =
                line.points.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
            let _ = writeln!(
                s,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                points.join(" ")
            );
        }
        for p in &line.points {
            let (at, radius) = ((x(p.0), y(p.1)), if line.marks { 5 } else { 2 });
            let _ = writeln!(
                s,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius}\" fill=\"{colour}\"/>",
                at.0, at.1
            );
        }
        let at = TOP + HIGH + 58.0 + 18.0 * i as f64;
        let _ = writeln!(
            s,
            "<circle cx=\"{}\" cy=\"{:.1}\" r=\"5\" fill=\"{colour}\"/><text x=\"{}\" y=\"{at:.1}\">{}</text>",
            LEFT + 8.0,
            at - 4.0,
            LEFT + 20.0,
            escape(&line.name)
        );
    }
    s + "</svg>\n"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_lie_where_they_should() {
        let line = Line { name: "a < b".into(), points: vec![(8.0, 100.0), (32.0, 0.0)], marks: false };
        let text = svg(&Chart { title: "t".into(), x: "x".into(), y: "y".into(), lines: vec![line] });
        assert!(text.contains("points=\"60.0,40.0 700.0,380.0\""), "{text}");
        assert!(text.contains("a &lt; b") && text.ends_with("</svg>\n"));
        assert!(text.contains(">8</text>") && text.contains(">16</text>") && text.contains(">32</text>"));
    }
}
