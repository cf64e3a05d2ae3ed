//! A machine, and what large buffers do to it.

use super::{Curve, Machine, fine};
use crate::Result;
use crate::reduce::Wire;

/// A machine, and what large buffers do to it. [`Machine`]'s costs are by the size of a message. But where many bytes are
/// under way, messages come from memory and not from a cache.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    pub machine: Machine,
    /// So many times as long `copy`, `fold`, `send` and `recv` take where so many bytes are under way for every core
    /// ([`Report::under_way`](crate::sim::Report)).
    pub stretch: Curve,
    /// Added to a call with so many bytes, ns: every algorithm has to get them from memory, and back, once.
    pub memory: Curve,
}

impl Model {
    /// Large buffers cost as small ones do.
    pub fn new(machine: Machine) -> Model {
        Model { machine, stretch: Curve::constant(1.0), memory: Curve::default() }
    }

    /// Whether `stretch` is 1 everywhere, so that [`Model::at`] changes nothing.
    pub fn is_stiff(&self) -> bool {
        self.stretch.points().iter().all(|p| p.1 == 1.0)
    }

    /// The machine as a call meets it that has so many bytes under way for every core.
    pub fn at(&self, under_way: f64) -> Machine {
        self.stretched(self.stretch.at(under_way))
    }

    /// The machine when copies, folds and messages take `factor` times as long.
    pub fn stretched(&self, factor: f64) -> Machine {
        let mut m = self.machine.clone();
        let Machine { copy, fold, inside, across, .. } = &mut m;
        for curve in [copy, fold].into_iter().chain(inside.work()).chain(across.work()) {
            *curve = curve.scaled(factor);
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
        fine(self.memory.largest(), "memory", "")
    }
}
