//! Profiles: what was measured of a machine and chosen for its jobs, as a file that people can read and edit.
//!
//! TOML. Times are nanoseconds, sizes bytes. Curves are points `[bytes, ns]`, a line `{ ns, gbs }` or one
//! number of ns. What a profile has is said in `docs/cost-model.md`.

use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Choice;
use super::table::{Place, Table};
use crate::cost::{Curve, Level, Machine, Model, OnCore};
use crate::schedule::{Algorithm, Collective};
use crate::{Code, Error, Result};

/// Layout of the file.
const VERSION: u64 = 1;
/// A longer file is none.
const LONGEST: u64 = 4 << 20;
/// What a choice may ask for.
const WAYS: std::ops::RangeInclusive<u64> = 1..=4;
const MESSAGE: std::ops::RangeInclusive<u64> = 1024..=64 << 20;
const TRANSPORTS: [&str; 4] = ["shm", "tcp", "shm+tcp", "self"];

/// See the module's text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    /// When, where and how: for people.
    pub about: Vec<(String, String)>,
    pub model: Option<Model>,
    /// What the model's numbers predicted, and what it took.
    pub runs: Vec<Run>,
    pub table: Table,
}

/// One measured call.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    pub place: Place,
    pub bytes: u64,
    pub choice: Choice,
    /// ns per call.
    pub measured: f64,
    pub predicted: f64,
}

/// Where in the text something stands.
struct Text<'a> {
    name: &'a str,
    text: &'a str,
}

type Value<'i> = Spanned<DeValue<'i>>;

impl Text<'_> {
    fn line(&self, at: usize) -> usize {
        1 + self.text.as_bytes()[..at.min(self.text.len())].iter().filter(|&&b| b == b'\n').count()
    }

    fn wrong(&self, at: usize, what: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::argument(what).who(format!("{}, line {}", self.name, self.line(at))).hint(hint)
    }

    fn kind(&self, v: &Value, name: &str, want: &str) -> Error {
        self.wrong(v.span().start, format!("`{name}` is not {want}"), "see docs/cost-model.md")
    }

    fn table<'v, 'i>(&self, v: &'v Value<'i>, name: &str) -> Result<&'v DeTable<'i>> {
        match v.get_ref() {
            DeValue::Table(t) => Ok(t),
            _ => Err(self.kind(v, name, "a table")),
        }
    }

    fn tables<'v, 'i>(&self, v: &'v Value<'i>, name: &str) -> Result<Vec<(&'v DeTable<'i>, usize)>> {
        let DeValue::Array(list) = v.get_ref() else {
            return Err(self.kind(v, name, &format!("a list of tables, [[{name}]]")));
        };
        list.iter().map(|v| Ok((self.table(v, name)?, v.span().start))).collect()
    }

    fn number(&self, v: &Value, name: &str) -> Result<f64> {
        let number = match v.get_ref() {
            DeValue::Integer(i) if i.radix() == 10 => i.as_str().parse().ok(),
            DeValue::Float(f) => f.as_str().parse().ok(),
            _ => None,
        };
        match number {
            Some(x) if f64::is_finite(x) && x >= 0.0 => Ok(x),
            Some(x) => Err(self.wrong(
                v.span().start,
                format!("`{name}` is {x}"),
                "times and sizes are not negative",
            )),
            None => Err(self.kind(v, name, "a number")),
        }
    }

    fn whole(&self, v: &Value, name: &str) -> Result<u64> {
        let number = match v.get_ref() {
            DeValue::Integer(i) => u64::from_str_radix(i.as_str(), i.radix()).ok(),
            _ => None,
        };
        number.ok_or_else(|| self.kind(v, name, "a whole number, 0 or more"))
    }

    fn string<'v>(&self, v: &'v Value, name: &str) -> Result<&'v str> {
        match v.get_ref() {
            DeValue::String(s) => Ok(s),
            _ => Err(self.kind(v, name, "a text in quotes")),
        }
    }

    /// Keys that are not among these are mistakes: they would be ignored silently.
    fn known(&self, t: &DeTable, what: &str, keys: &[&str]) -> Result<()> {
        match t.iter().find(|(k, _)| !keys.contains(&k.get_ref().as_ref())) {
            None => Ok(()),
            Some((k, _)) => Err(self.wrong(
                k.span().start,
                format!("`{}` is not known in {what}", k.get_ref()),
                format!("use {}", keys.join(", ")),
            )),
        }
    }

    fn need<'v, 'i>(&self, t: &'v DeTable<'i>, at: usize, what: &str, key: &str) -> Result<&'v Value<'i>> {
        t.get(key).ok_or_else(|| self.wrong(at, format!("`{key}` is missing in {what}"), "add it"))
    }

    fn curve(&self, v: &Value, name: &str) -> Result<Curve> {
        match v.get_ref() {
            DeValue::Array(points) => {
                let pair = |p: &Value| match p.get_ref() {
                    DeValue::Array(xy) if xy.len() == 2 => {
                        let mut xy = xy.iter().map(|x| self.number(x, name));
                        let (x, y) = (xy.next().expect("two")?, xy.next().expect("two")?);
                        Ok((x, y))
                    }
                    _ => Err(self.kind(p, name, "a list of [bytes, ns]")),
                };
                let points = points.iter().map(pair).collect::<Result<Vec<_>>>()?;
                Curve::new(points)
                    .map_err(|e| self.wrong(v.span().start, format!("`{name}` {}", e.what), e.hint))
            }
            DeValue::Table(t) => {
                self.known(t, name, &["ns", "gbs"])?;
                let get = |k: &str| t.get(k).map(|v| self.number(v, k)).transpose();
                let (ns, gbs) = (get("ns")?.unwrap_or(0.0), get("gbs")?);
                match gbs {
                    Some(g) if g < 1e-9 => {
                        Err(self.wrong(v.span().start, format!("`{name}` has {g} GB/s"), "more than 0"))
                    }
                    _ => Ok(Curve::line(ns, gbs.map_or(0.0, |g| 1.0 / g))),
                }
            }
            _ => Ok(Curve::constant(self.number(v, name)?)),
        }
    }

    fn level(&self, v: &Value, name: &str) -> Result<Level> {
        let t = self.table(v, name)?;
        self.known(
            t,
            &format!("[machine.{name}]"),
            &["send", "recv", "latency", "link", "links", "depth", "credits", "core_send", "core_recv"],
        )?;
        let curve = |k: &str| t.get(k).map_or(Ok(Curve::default()), |v| self.curve(v, k));
        // Of the two either may be left out.
        let on_core = |k: &str, otherwise: &str| curve(if t.contains_key(k) { k } else { otherwise });
        let small = |k: &str, otherwise: u32| match t.get(k) {
            None => Ok(otherwise),
            Some(v) => u32::try_from(self.whole(v, k)?).map_err(|_| self.kind(v, k, "a small number")),
        };
        Ok(Level {
            send: curve("send")?,
            recv: curve("recv")?,
            latency: self
                .number(self.need(t, v.span().start, &format!("[machine.{name}]"), "latency")?, "latency")?,
            link: curve("link")?,
            links: small("links", 0)?,
            depth: small("depth", 4)?,
            credits: small("credits", 0)?,
            on_core: match t.contains_key("core_send") || t.contains_key("core_recv") {
                true => {
                    Some(OnCore { send: on_core("core_send", "send")?, recv: on_core("core_recv", "recv")? })
                }
                false => None,
            },
        })
    }

    fn model(&self, v: &Value) -> Result<Model> {
        let t = self.table(v, "machine")?;
        let keys = [
            "call",
            "op",
            "copy",
            "fold",
            "stretch",
            "memory",
            "cores",
            "core_hosts",
            "switch",
            "inside",
            "across",
        ];
        self.known(t, "[machine]", &keys)?;
        let number = |k: &str| t.get(k).map_or(Ok(0.0), |v| self.number(v, k));
        let curve = |k: &str| t.get(k).map_or(Ok(Curve::default()), |v| self.curve(v, k));
        let inside = self.level(self.need(t, v.span().start, "[machine]", "inside")?, "inside")?;
        let across = t.get("across").map(|v| self.level(v, "across")).transpose()?;
        let cores = t.get("cores").map(|v| self.whole(v, "cores")).transpose()?;
        let machine = Machine {
            across: across.unwrap_or_else(|| inside.clone()),
            inside,
            call: number("call")?,
            op: number("op")?,
            copy: curve("copy")?,
            fold: curve("fold")?,
            cores: cores.map(|c| u32::try_from(c).unwrap_or(u32::MAX)),
            core_hosts: match t.get("core_hosts") {
                None => 1,
                Some(v) => u32::try_from(self.whole(v, "core_hosts")?).unwrap_or(u32::MAX),
            },
            switch: number("switch")?,
            trunk: None,
        };
        let factor = |k: &str| t.get(k).map_or(Ok(Curve::constant(1.0)), |v| self.curve(v, k));
        let model = Model { machine, stretch: factor("stretch")?, memory: curve("memory")? };
        model.check().map_err(|e| self.wrong(v.span().start, e.what, e.hint))?;
        Ok(model)
    }

    fn place(&self, t: &DeTable, at: usize, what: &str) -> Result<Place> {
        let v = self.need(t, at, what, "collective")?;
        let name = self.string(v, "collective")?;
        let collective = Collective::by_name(name).ok_or_else(|| {
            let names: Vec<&str> = Collective::ALL.iter().map(|c| c.name()).collect();
            self.wrong(
                v.span().start,
                format!("there is no collective {name}"),
                format!("use one of {}", names.join(", ")),
            )
        })?;
        let count = |k: &str| -> Result<u32> {
            let v = self.need(t, at, what, k)?;
            let n = self.whole(v, k)?;
            u32::try_from(n).ok().filter(|n| *n > 0).ok_or_else(|| self.kind(v, k, "a number above 0"))
        };
        let (ranks, hosts) = (count("ranks")?, count("hosts")?);
        if hosts > ranks {
            return Err(self.wrong(
                at,
                format!("{ranks} ranks on {hosts} hosts"),
                "hosts have a rank or more",
            ));
        }
        let v = self.need(t, at, what, "transport")?;
        let name = self.string(v, "transport")?;
        let transport = TRANSPORTS.into_iter().find(|t| *t == name).ok_or_else(|| {
            self.wrong(
                v.span().start,
                format!("there is no transport {name}"),
                format!("use one of {}", TRANSPORTS.join(", ")),
            )
        })?;
        Ok(Place { collective, ranks, hosts, transport })
    }

    fn how(&self, t: &DeTable, at: usize, what: &str, collective: Collective) -> Result<Choice> {
        let v = self.need(t, at, what, "algorithm")?;
        let name = self.string(v, "algorithm")?;
        let algorithm = Algorithm::by_name(collective, name).ok_or_else(|| {
            let names: Vec<&str> = crate::schedule::algorithms_of(collective).map(|a| a.name).collect();
            self.wrong(
                v.span().start,
                format!("{} has no algorithm {name}", collective.name()),
                format!("use one of {}", names.join(", ")),
            )
        })?;
        let within = |k: &str, range: std::ops::RangeInclusive<u64>| -> Result<u64> {
            let v = self.need(t, at, what, k)?;
            let n = self.whole(v, k)?;
            let hint = format!("from {} to {}", range.start(), range.end());
            if range.contains(&n) {
                Ok(n)
            } else {
                Err(self.wrong(v.span().start, format!("`{k}` is {n}"), hint))
            }
        };
        Ok(Choice {
            algorithm,
            ways: within("ways", WAYS)? as u32,
            message: within("message", MESSAGE)? as usize,
        })
    }

    fn profile(&self) -> Result<Profile> {
        let root = DeTable::parse(self.text).map_err(|e| {
            let at = e.span().map_or(0, |s| s.start);
            self.wrong(at, format!("not TOML: {}", e.message()), "see docs/cost-model.md")
        })?;
        let root = root.get_ref();
        self.known(root, "a profile", &["version", "about", "machine", "run", "choice"])?;
        let v = self.need(root, 0, "a profile", "version")?;
        let version = self.whole(v, "version")?;
        if version != VERSION {
            let what = format!("a profile of version {version}, and this library reads version {VERSION}");
            return Err(self.wrong(v.span().start, what, "make a new one with graccl tune"));
        }
        let mut profile = Profile::default();
        if let Some(v) = root.get("about") {
            for (k, v) in self.table(v, "about")? {
                let text = self.string(v, k.get_ref())?;
                profile.about.push((k.get_ref().to_string(), text.to_string()));
            }
        }
        profile.model = root.get("machine").map(|v| self.model(v)).transpose()?;
        const HOW: [&str; 7] = ["collective", "ranks", "hosts", "transport", "algorithm", "ways", "message"];
        for (t, at) in root.get("run").map_or(Ok(Vec::new()), |v| self.tables(v, "run"))? {
            self.known(t, "[[run]]", &[&HOW[..], &["bytes", "measured", "predicted"]].concat())?;
            let place = self.place(t, at, "[[run]]")?;
            let number = |k: &str| self.number(self.need(t, at, "[[run]]", k)?, k);
            profile.runs.push(Run {
                place,
                bytes: self.whole(self.need(t, at, "[[run]]", "bytes")?, "bytes")?,
                choice: self.how(t, at, "[[run]]", place.collective)?,
                measured: number("measured")?,
                predicted: number("predicted")?,
            });
        }
        for (t, at) in root.get("choice").map_or(Ok(Vec::new()), |v| self.tables(v, "choice"))? {
            self.known(t, "[[choice]]", &[&HOW[..], &["up_to"]].concat())?;
            let place = self.place(t, at, "[[choice]]")?;
            let up_to = t.get("up_to").map(|v| self.whole(v, "up_to")).transpose()?.unwrap_or(u64::MAX);
            let choice = self.how(t, at, "[[choice]]", place.collective)?;
            if !profile.table.push(place, up_to, choice) {
                let what = "a choice that comes after one for as many bytes or more";
                return Err(self.wrong(
                    at,
                    what,
                    "order the choices of a job by up_to; without up_to a choice is for all larger calls",
                ));
            }
        }
        Ok(profile)
    }
}

impl Profile {
    /// Reads a profile; `name` is for errors.
    ///
    /// # Errors
    /// `InvalidArgument`, with the line, for what is not TOML, has another version, keys that are not known,
    /// algorithms that do not exist, or curves and numbers without sense.
    pub fn parse(name: &str, text: &str) -> Result<Profile> {
        Text { name, text }.profile()
    }

    /// The profile in a file. `InvalidArgument` if it cannot be read, and as [`Profile::parse`].
    pub fn load(path: impl AsRef<Path>) -> Result<Profile> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let cannot = |what: String| {
            Err(Error::argument(what).who(format!("profile {name}")).hint("make one with graccl tune"))
        };
        // Devices and pipes may never end.
        match std::fs::metadata(path) {
            Err(e) => return cannot(format!("cannot read the profile: {e}")),
            Ok(m) if !m.is_file() => return cannot("the profile is not a file".into()),
            Ok(m) if m.len() > LONGEST => return cannot(format!("a profile of {} bytes", m.len())),
            Ok(_) => {}
        }
        let mut text = String::new();
        let read = std::fs::File::open(path).and_then(|f| f.take(LONGEST).read_to_string(&mut text));
        match read {
            Ok(_) => Profile::parse(&name, &text),
            Err(e) => cannot(format!("cannot read the profile: {e}")),
        }
    }

    /// Text that [`Profile::parse`] reads again.
    pub fn to_toml(&self) -> String {
        let mut s = format!(
            "# What graccl tune measured and chose. Times are ns, sizes bytes. GRACCL_PROFILE=FILE makes jobs use\n\
             # the choices; all ranks need the same ones. Edit what you know better: docs/cost-model.md.\n\
             version = {VERSION}\n"
        );
        if !self.about.is_empty() {
            s += "\n[about]\n";
        }
        for (k, v) in &self.about {
            let key = if k.bytes().all(|b| b.is_ascii_alphanumeric()) && !k.is_empty() {
                k.clone()
            } else {
                quoted(k)
            };
            let _ = writeln!(s, "{key} = {}", quoted(v));
        }
        if let Some(m) = &self.model {
            model(&mut s, m);
        }
        if !self.runs.is_empty() {
            s += "\n# What a call took, and what [machine] predicts for it. Not used.\n";
        }
        for r in &self.runs {
            let _ = write!(s, "\n[[run]]\n{}", place(&r.place));
            let _ = write!(s, "bytes = {}\n{}", r.bytes, how(&r.choice));
            // The comment is about what is written, so that it is the same when that has been read.
            let [measured, predicted] = [r.measured, r.predicted].map(f64::round);
            let off = 100.0 * (predicted / measured - 1.0);
            let (measured, predicted) = (number(measured), number(predicted));
            let _ = writeln!(s, "measured = {measured}\npredicted = {predicted} # {off:+.0} %");
        }
        if !self.table.is_empty() {
            s += "\n# What to do, by the bytes of the larger of a rank's buffers. Without up_to: for all larger calls.\n";
        }
        for (p, up_to, c) in self.table.rows() {
            let _ = write!(s, "\n[[choice]]\n{}", place(&p));
            if up_to != u64::MAX {
                let _ = writeln!(s, "up_to = {up_to}");
            }
            s += &how(&c);
        }
        s
    }

    /// Writes the file, as a whole or not at all, by way of `FILE.new`. `SystemError` if that is not possible.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        std::fs::write(&new, self.to_toml()).and_then(|()| std::fs::rename(&new, path)).map_err(|e| {
            Error::new(Code::SystemError, format!("cannot write {}: {e}", path.display()))
                .hint("choose a place that can be written to")
        })
    }
}

/// Feeds the parser, for fuzzing: what it takes is written, and read again as the same.
#[doc(hidden)]
pub fn fuzz_profile(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Profile::parse("fuzz", text) {
        Err(e) => assert!(e.who.starts_with("fuzz, line ") && !e.hint.is_empty(), "{e}"),
        Ok(p) => {
            let again = Profile::parse("again", &p.to_toml());
            assert!(again.is_ok_and(|a| a.to_toml() == p.to_toml()), "{}", p.to_toml());
        }
    }
}

/// A TOML string.
fn quoted(text: &str) -> String {
    let mut s = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => s.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(s, "\\u{:04X}", c as u32);
            }
            c => s.push(c),
        }
    }
    s + "\""
}

fn place(p: &Place) -> String {
    let Place { collective, ranks, hosts, transport } = p;
    let name = collective.name();
    format!("collective = \"{name}\"\nranks = {ranks}\nhosts = {hosts}\ntransport = \"{transport}\"\n")
}

fn how(c: &Choice) -> String {
    let Choice { algorithm, ways, message } = c;
    format!("algorithm = \"{}\"\nways = {ways}\nmessage = {message}\n", algorithm.name)
}

/// As short as it can be read back.
fn number(x: f64) -> String {
    if x.fract() == 0.0 && x < 1e15 { format!("{x:.0}") } else { format!("{x:?}") }
}

fn curve(c: &Curve) -> String {
    let points: Vec<String> =
        c.points().iter().map(|(b, ns)| format!("[{}, {}]", number(*b), number(*ns))).collect();
    format!("[{}]", points.join(", "))
}

fn model(s: &mut String, model: &Model) {
    let m = &model.machine;
    let _ = write!(
        s,
        "\n[machine]\n\
         call = {} # software of a call on a rank\n\
         op = {} # an op of a tile\n\
         copy = {} # one source to one destination: [bytes, ns]\n\
         fold = {} # every further source\n\
         stretch = {} # times as long where so many bytes are under way for a core: [bytes, factor]\n\
         memory = {} # added to a call with so many bytes\n",
        number(m.call),
        number(m.op),
        curve(&m.copy),
        curve(&m.fold),
        curve(&model.stretch),
        curve(&model.memory)
    );
    if let Some(cores) = m.cores {
        let _ = writeln!(s, "cores = {cores} # of a host, which its ranks share");
        let _ = writeln!(s, "core_hosts = {} # that have these cores together", m.core_hosts);
    }
    let _ = writeln!(s, "switch = {} # a core goes to another rank", number(m.switch));
    for (name, about, l) in
        [("inside", "between ranks of a host", &m.inside), ("across", "between hosts", &m.across)]
    {
        let _ = write!(
            s,
            "\n[machine.{name}] # {about}\n\
             send = {} # the sender's core, and\n\
             recv = {} # the receiver's, beyond copy or fold\n\
             latency = {}\n\
             link = {} # a message has the link of its host for itself\n\
             links = {} # of a host; 0: one for every rank\n\
             depth = {} # messages in flight\n\
             credits = {} # one way only: told of room after so many; 0: costs nothing\n",
            curve(&l.send),
            curve(&l.recv),
            number(l.latency),
            curve(&l.link),
            l.links,
            l.depth,
            l.credits
        );
        if let Some(on) = &l.on_core {
            let _ = write!(
                s,
                "core_send = {} # send and recv between ranks that share a core\n\
                 core_recv = {}\n",
                curve(&on.send),
                curve(&on.recv)
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "version = 1\n\
        [machine]\ncall = 40\ncopy = [[64, 3], [4096, 50.5]]\nfold = { ns = 1, gbs = 20 }\ncores = 2\n\
        [machine.inside]\nsend = 20\nlatency = 60\n\
        [machine.across]\nlatency = 5e3\nlink = { gbs = 0.125 }\nlinks = 1\n\
        [[choice]]\ncollective = \"all_reduce\"\nranks = 4\nhosts = 1\ntransport = \"shm\"\nup_to = 16384\n\
        algorithm = \"one_shot\"\nways = 1\nmessage = 262144\n\
        [[choice]]\ncollective = \"all_reduce\"\nranks = 4\nhosts = 1\ntransport = \"shm\"\n\
        algorithm = \"ring\"\nways = 2\nmessage = 262144\n";

    #[test]
    fn what_is_written_is_read_again() {
        let p = Profile::parse("p", GOOD).unwrap();
        let m = &p.model.as_ref().unwrap().machine;
        assert_eq!((m.call, m.copy.at(4096.0), m.fold.at(40.0)), (40.0, 50.5, 3.0));
        assert_eq!((m.cores, m.across.latency, m.across.link.at(125.0)), (Some(2), 5000.0, 1000.0));
        assert_eq!(p.table.rows().count(), 2);
        let mut p = p;
        let model = p.model.as_mut().unwrap();
        (model.machine.inside.depth, model.machine.across.credits) = (5, 2);
        model.machine.inside.on_core =
            Some(OnCore { send: Curve::constant(7.0), recv: Curve::line(3.0, 0.25) });
        model.stretch = Curve::new(vec![(32768.0, 1.0), (1e6, 1.5)]).unwrap();
        model.memory = Curve::new(vec![(32768.0, 0.0), (1e6, 7000.0)]).unwrap();
        p.about.push(("host".into(), "a \"b\" \\ \n".into()));
        let (place, _, choice) = p.table.rows().next().unwrap();
        p.runs.push(Run { place, bytes: 4, choice, measured: 100.0, predicted: 90.0 });
        let again = Profile::parse("again", &p.to_toml()).unwrap();
        assert_eq!(again.to_toml(), p.to_toml());
        assert_eq!(again.table.digest(), p.table.digest());
        assert_eq!(again, p);
    }

    /// Every mistake is named, with its line.
    #[test]
    fn mistakes_have_a_line() {
        for (from, to, line, what) in [
            ("version = 1", "version = 2", 1, "version 2"),
            ("version = 1", "version = \"1\"", 1, "whole number"),
            ("version = 1\n", "", 1, "`version` is missing"),
            ("call = 40", "call = -40", 3, "`call` is -40"),
            ("call = 40", "call = nan", 3, "`call`"),
            ("call = 40", "call = = 40", 3, "not TOML"),
            ("call = 40", "cal = 40", 3, "`cal` is not known"),
            ("[4096, 50.5]", "[32, 50.5]", 4, "sizes must rise".split(' ').next().unwrap()),
            ("[4096, 50.5]", "[4096]", 4, "[bytes, ns]"),
            ("[4096, 50.5]", "[4096, 1]", 4, "falls"),
            ("gbs = 20", "gbs = 0", 5, "0 GB/s"),
            ("cores = 2", "cores = 0", 2, "cores is 0"),
            ("latency = 60\n", "", 7, "`latency` is missing"),
            ("latency = 60\n", "latency = 60\ndepth = 0\n", 2, "depth"),
            ("all_reduce", "all_redcue", 15, "no collective all_redcue"),
            ("ranks = 4", "ranks = 0", 16, "`ranks`"),
            ("hosts = 1", "hosts = 5", 14, "4 ranks on 5 hosts"),
            ("\"shm\"", "\"ship\"", 18, "no transport ship"),
            ("one_shot", "bruck", 20, "no algorithm bruck"),
            ("ways = 1", "ways = 5", 21, "`ways` is 5"),
            ("message = 262144", "message = 1", 22, "`message` is 1"),
            ("up_to = 16384\n", "", 22, "as many bytes"),
            ("up_to", "upto", 19, "`upto` is not known"),
            ("[[choice]]", "[choice]", 0, ""),
        ] {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD, "{from}");
            let e = Profile::parse("p.toml", &text).unwrap_err();
            let all = e.to_string();
            assert!(all.contains(what), "{from} -> {to}: {all}");
            assert!(line == 0 || e.who == format!("p.toml, line {line}"), "{from} -> {to}: {all}");
            assert!(!e.hint.is_empty(), "{all}");
        }
    }

    #[test]
    fn only_files_are_read() {
        for path in ["/dev/zero", "/", "/no/such/file"] {
            let e = Profile::load(path).unwrap_err();
            assert!(e.who.contains(path) && !e.hint.is_empty(), "{e}");
        }
    }
}
