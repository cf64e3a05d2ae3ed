//! The text of the table: rows like nccl-tests', then our columns.

use super::job::Spread;

/// One placement's result.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub time_us: f64,
    pub algbw: f64,
    pub busbw: f64,
    /// `None` when results were not checked.
    pub wrong: Option<usize>,
}

/// One row.
#[derive(Clone, Debug)]
pub struct Row {
    pub bytes: usize,
    pub count: usize,
    pub dtype: &'static str,
    /// "none" where nothing is reduced.
    pub op: &'static str,
    pub root: Option<usize>,
    pub out_of_place: Timing,
    /// Where that exists.
    pub in_place: Option<Timing>,
    /// In place where that exists.
    pub spread: Spread,
    pub plan: String,
    /// Algorithm that was asked for beside the choice; `None`: this is the choice.
    pub beside: Option<&'static str>,
    /// Time of day, when asked for.
    pub timestamp: Option<String>,
}

/// A number in at most `width` characters: two decimals while they fit.
pub fn number(value: f64, width: usize) -> String {
    let whole = format!("{:.0}", value.max(0.0).floor()).len();
    if whole + 3 <= width {
        format!("{value:.2}")
    } else if whole + 2 <= width {
        format!("{value:.1}")
    } else if whole <= width {
        format!("{value:.0}")
    } else {
        format!("{value:.0e}")
    }
}

/// The lines above the rows.
pub fn head(in_place: bool, cpu_time: bool, timestamps: bool) -> String {
    let time = if cpu_time { "cputime" } else { "time" };
    let stamp = if timestamps { "  timestamp" } else { "" };
    let place = format!("  {time:>7}  {:>6}  {:>6}  {:>6}", "algbw", "busbw", "#wrong");
    let unit = format!("  {:>7}  {:>6}  {:>6}  {:>6}", "(us)", "(GB/s)", "(GB/s)", "");
    let left = |a, b, c, d, e| format!("# {a:>10}  {b:>12}  {c:>8}  {d:>6}  {e:>6}");
    [
        "#".to_string(),
        format!(
            "{}  {:^31}  {:^31}  {:^34}",
            left("", "", "", "", ""),
            "out-of-place",
            "in-place",
            if in_place { "in-place, slowest rank (us)" } else { "out-of-place, slowest rank (us)" }
        ),
        format!(
            "{}{place}{place}  {:>7}  {:>7}  {:>7}  {:>7}  plan{stamp}",
            left("size", "count", "type", "redop", "root"),
            "min",
            "median",
            "p99",
            "max"
        ),
        left("(B)", "(elements)", "", "", "") + &unit + &unit,
    ]
    .map(|l| l.trim_end().to_string() + "\n")
    .concat()
}

impl Row {
    /// The root, or nccl-tests' -1.
    pub fn root_name(&self) -> String {
        self.root.map_or("-1".to_string(), |r| r.to_string())
    }

    pub fn line(&self) -> String {
        let none = || "N/A".to_string();
        let place = |r: Option<&Timing>| {
            format!(
                "  {:>7}  {:>6}  {:>6}  {:>6}",
                r.map_or_else(none, |r| number(r.time_us, 7)),
                r.map_or_else(none, |r| number(r.algbw, 6)),
                r.map_or_else(none, |r| number(r.busbw, 6)),
                r.and_then(|r| r.wrong).map_or_else(none, |w| w.to_string())
            )
        };
        let s = &self.spread;
        let stamp = self.timestamp.as_deref().map_or(String::new(), |t| format!("  {t}"));
        format!(
            "{:>12}  {:>12}  {:>8}  {:>6}  {:>6}{}{}  {:>7}  {:>7}  {:>7}  {:>7}  {}{stamp}\n",
            self.bytes,
            self.count,
            self.dtype,
            self.op,
            self.root_name(),
            place(Some(&self.out_of_place)),
            place(self.in_place.as_ref()),
            number(s.min, 7),
            number(s.median, 7),
            number(s.p99, 7),
            number(s.max, 7),
            self.plan
        )
    }
}

/// The lines below the rows. `busbw` is the mean over rows and placements, where that means something.
pub fn foot(wrong: usize, busbw: Option<f64>) -> String {
    let verdict = if wrong == 0 { "OK" } else { "FAILED" };
    let mean = busbw.map_or(String::new(), |b| format!("# {:<20} : {b:.6}\n", "Avg bus bandwidth"));
    format!("# {:<20} : {wrong} {verdict}\n{mean}#\n", "Out of bounds values")
}

/// Local time as "2024-05-31 13:45:00".
pub fn now() -> String {
    // SAFETY: both structs outlive the calls; all-zero is a valid `tm`.
    let t = unsafe {
        let seconds = libc::time(std::ptr::null_mut());
        let mut t: libc::tm = std::mem::zeroed();
        libc::localtime_r(&seconds, &mut t);
        t
    };
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}",
        t.tm_year + 1900,
        t.tm_mon + 1,
        t.tm_mday,
        t.tm_hour,
        t.tm_min,
        t.tm_sec
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_width() {
        for (value, width, text) in [
            (0.0, 7, "0.00"),
            (1.234, 7, "1.23"),
            (1234.567, 7, "1234.57"),
            (12345.67, 7, "12345.7"),
            (123456.7, 7, "123457"),
            (1234567.0, 7, "1234567"),
            (12345678.0, 7, "1e7"),
            (123.456, 6, "123.46"),
        ] {
            assert_eq!(number(value, width), text);
            assert!(text.len() <= width);
        }
    }

    #[test]
    fn rows_stand_below_their_heads() {
        let r = Timing { time_us: 12.3, algbw: 1.0, busbw: 1.0, wrong: Some(0) };
        let row = Row {
            bytes: 8,
            count: 2,
            dtype: "float",
            op: "sum",
            root: None,
            out_of_place: r,
            in_place: Some(Timing { wrong: None, ..r }),
            spread: Spread::default(),
            plan: "ring x4".into(),
            beside: None,
            timestamp: Some(now()),
        };
        let (head, line) = (head(true, false, true), row.line());
        let names = head.lines().nth(2).unwrap();
        assert_eq!(names.find("plan"), line.find("ring"));
        assert_eq!(names.find("#wrong").map(|i| i + 6), line.find("       0  ").map(|i| i + 8));
        assert_eq!(line.split_whitespace().count(), 5 + 8 + 4 + 2 + 2);
        let apart = Row { root: Some(3), in_place: None, ..row }.line();
        assert_eq!(apart.len(), line.len());
        assert_eq!(apart.split_whitespace().filter(|f| *f == "N/A").count(), 4);
        assert_eq!(apart.split_whitespace().nth(4), Some("3"));
    }
}
