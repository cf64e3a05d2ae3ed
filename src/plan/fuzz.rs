//! Entry for fuzzing: model files may hold any numbers.

use super::{Costs, Mode, Model, Options, alternatives, plan};
use crate::cost::Linear;

/// What the parser takes can be planned, in every mode, whole and cut: all bytes are sent, in no less time than the bound.
#[doc(hidden)]
pub fn fuzz_model(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let model = match Model::parse(text) {
        Ok(model) => model,
        Err(e) => return assert!(!e.who.is_empty() && !e.hint.is_empty(), "{e}"),
    };
    let (whole, half) = (Linear::new("whole", 2e4, 0.2), Linear::new("half", 1e4, 0.1));
    let costs = Costs { all_reduce: &whole, whole: None, halves: Some((&half, &half)) };
    for model in [Some(model.clone()), model.in_time(1e9).ok()].into_iter().flatten() {
        let bytes = model.bytes();
        for (mode, cut) in Mode::ALL.into_iter().zip([0, bytes / 8, bytes / 8]) {
            let plan =
                plan(&model, &costs, &Options { modes: vec![mode], cut }).expect("a plan of few gradients");
            assert!(plan.ns.is_finite() && plan.ns >= plan.bound.ns() * (1.0 - 1e-6), "{plan:?}");
            assert_eq!(plan.buckets.iter().map(|b| b.bytes).sum::<u64>(), bytes);
            assert!(!plan.why(&model).is_empty());
        }
        alternatives(&model, &costs).expect("rules for few gradients");
    }
}
