//! A machine, and what large buffers do to it.

use super::{Curve, Machine, fine};
use crate::Result;
use crate::reduce::Wire;

/// A machine, and what large buffers do to it. [`Machine`]'s costs are by the size of a message. But a message
/// of a large buffer follows others, and comes from memory and not from a cache.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    pub machine: Machine,
    /// So many times as long `copy`, `fold` and, inside a host, `send` and `recv` take where a rank's buffer
    /// has so many bytes.
    pub stretch: Curve,
    /// The same for `send` and `recv` between hosts.
    pub stretch_across: Curve,
    /// Added to a call with so many bytes, ns: every algorithm has to get them from memory, and back, once.
    pub memory: Curve,
}

impl Model {
    /// Large buffers cost as small ones do.
    pub fn new(machine: Machine) -> Model {
        let same = Curve::constant(1.0);
        Model { machine, stretch: same.clone(), stretch_across: same, memory: Curve::default() }
    }

    /// The machine as a call with a buffer of `bytes` meets it.
    pub fn at(&self, bytes: u64) -> Machine {
        let mut m = self.machine.clone();
        let inside = self.stretch.at(bytes as f64);
        for curve in [&mut m.copy, &mut m.fold, &mut m.inside.send, &mut m.inside.recv] {
            *curve = curve.scaled(inside);
        }
        let across = self.stretch_across.at(bytes as f64);
        for curve in [&mut m.across.send, &mut m.across.recv] {
            *curve = curve.scaled(across);
        }
        m
    }

    /// See [`Machine::packed`].
    pub fn packed(&self, wire: Wire) -> Model {
        Model { machine: self.machine.packed(wire), ..self.clone() }
    }

    /// As [`Machine::check`].
    pub fn check(&self) -> Result<()> {
        self.machine.check()?;
        fine(self.stretch.largest(), "stretch", "")?;
        fine(self.stretch_across.largest(), "stretch_across", "")?;
        fine(self.memory.largest(), "memory", "")
    }
}
