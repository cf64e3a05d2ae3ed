//! What numbers of flags may be: said by clap, before anything starts.

fn number(text: &str, fits: impl Fn(f32) -> bool, says: &str) -> Result<f32, String> {
    text.parse().ok().filter(|&v: &f32| v.is_finite() && fits(v)).ok_or_else(|| format!("give {says}"))
}

pub fn positive(text: &str) -> Result<f32, String> {
    number(text, |v| v > 0.0, "a number above 0")
}

pub fn at_least_0(text: &str) -> Result<f32, String> {
    number(text, |v| v >= 0.0, "a number, 0 or above")
}

/// 0 to below 1.
pub fn part(text: &str) -> Result<f32, String> {
    number(text, |v| (0.0..1.0).contains(&v), "a number from 0 to below 1")
}

pub fn at_least_1(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "give a whole number, 1 or above".into())
}
