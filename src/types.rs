//! Element types and reduction operations. The numbers are NCCL's, so that tables and readers agree.

use crate::error::{Error, Result};

/// Type of one element.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataType {
    I8 = 0,
    U8 = 1,
    I32 = 2,
    U32 = 3,
    I64 = 4,
    U64 = 5,
    F16 = 6,
    F32 = 7,
    F64 = 8,
    Bf16 = 9,
    /// 8 bits, 4 of them exponent, in OCP's "FN" form: no infinities, one NaN, at most 448. A larger
    /// result saturates to 448, as NVIDIA's conversions and so NCCL's sums do: the only other way to
    /// say "too large" would be NaN, and tensors are scaled so that their maximum is near 448.
    F8E4M3 = 10,
    /// 8 bits, 5 of them exponent, as IEEE 754 would have it: at most 57344. A larger result is
    /// infinite, as it is in `F16`: that is how loss scaling finds out (NCCL saturates).
    F8E5M2 = 11,
}

impl DataType {
    pub const ALL: [DataType; 12] = [
        DataType::I8,
        DataType::U8,
        DataType::I32,
        DataType::U32,
        DataType::I64,
        DataType::U64,
        DataType::F16,
        DataType::F32,
        DataType::F64,
        DataType::Bf16,
        DataType::F8E4M3,
        DataType::F8E5M2,
    ];
    /// Bytes of one element.
    #[inline]
    pub const fn size(self) -> usize {
        match self {
            DataType::I8 | DataType::U8 | DataType::F8E4M3 | DataType::F8E5M2 => 1,
            DataType::F16 | DataType::Bf16 => 2,
            DataType::I32 | DataType::U32 | DataType::F32 => 4,
            DataType::I64 | DataType::U64 | DataType::F64 => 8,
        }
    }
    /// nccl-tests' name ("float", "half", "int8", ...).
    pub const fn name(self) -> &'static str {
        match self {
            DataType::I8 => "int8",
            DataType::U8 => "uint8",
            DataType::I32 => "int32",
            DataType::U32 => "uint32",
            DataType::I64 => "int64",
            DataType::U64 => "uint64",
            DataType::F16 => "half",
            DataType::F32 => "float",
            DataType::F64 => "double",
            DataType::Bf16 => "bfloat16",
            DataType::F8E4M3 => "f8e4m3",
            DataType::F8E5M2 => "f8e5m2",
        }
    }
    /// Whether elements are floating-point numbers; the others are integers.
    #[inline]
    pub const fn is_float(self) -> bool {
        match self {
            DataType::F16 | DataType::F32 | DataType::F64 | DataType::Bf16 => true,
            DataType::F8E4M3 | DataType::F8E5M2 => true,
            DataType::I8 | DataType::U8 | DataType::I32 => false,
            DataType::U32 | DataType::I64 | DataType::U64 => false,
        }
    }
    /// From the C ABI's number.
    pub fn from_raw(v: i32) -> Option<DataType> {
        DataType::ALL.get(usize::try_from(v).ok()?).copied()
    }
}

/// How contributions are combined.
///
/// Integers wrap on overflow; `Avg` of integers is the wrapped sum divided by the number of ranks,
/// truncated toward zero. `Min`/`Max` of floats return NaN if any contribution is NaN.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RedOp {
    Sum = 0,
    Prod = 1,
    Max = 2,
    Min = 3,
    Avg = 4,
}

impl RedOp {
    pub const ALL: [RedOp; 5] = [RedOp::Sum, RedOp::Prod, RedOp::Max, RedOp::Min, RedOp::Avg];
    /// nccl-tests' name ("sum", ...).
    pub const fn name(self) -> &'static str {
        match self {
            RedOp::Sum => "sum",
            RedOp::Prod => "prod",
            RedOp::Max => "max",
            RedOp::Min => "min",
            RedOp::Avg => "avg",
        }
    }
    /// From the C ABI's number.
    pub fn from_raw(v: i32) -> Option<RedOp> {
        RedOp::ALL.get(usize::try_from(v).ok()?).copied()
    }
}

/// Element types that Rust has.
///
/// # Safety
/// `DTYPE` describes the type's memory exactly.
pub unsafe trait Element: Copy {
    const DTYPE: DataType;
}

macro_rules! elements {
    ($($t:ty => $d:ident),*) => {
        // SAFETY: same size, same representation.
        $(unsafe impl Element for $t { const DTYPE: DataType = DataType::$d; })*
    };
}

elements!(i8 => I8, u8 => U8, i32 => I32, u32 => U32, i64 => I64, u64 => U64, f32 => F32, f64 => F64);

/// What each rank's contribution is multiplied by before it is folded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Factor {
    /// For floats: multiplies `F64` as it is. For the others it is rounded to f32, and the product,
    /// an f32 too, is rounded to the element type.
    Float(f64),
    /// For integers; the product wraps. Factors of `U64` from 2^63 on are given as the negative
    /// number that has the same bits.
    Int(i64),
}

impl Factor {
    /// Whether elements of `dtype` can be multiplied by it: floats by [`Float`](Factor::Float) (any,
    /// NaN and infinity too), integers by [`Int`](Factor::Int). Otherwise `InvalidArgument`.
    pub fn fits(self, dtype: DataType) -> Result<()> {
        match (self, dtype.is_float()) {
            (Factor::Float(_), true) | (Factor::Int(_), false) => Ok(()),
            (Factor::Float(x), false) => Err(Error::argument(format!("a factor of {x} for integers"))
                .who(dtype.name())
                .hint("pass a Factor::Int")),
            (Factor::Int(x), true) => Err(Error::argument(format!("an integer factor of {x} for floats"))
                .who(dtype.name())
                .hint("pass a Factor::Float")),
        }
    }
}

/// How a call combines contributions: an operation, and a factor of this rank's own for pre-multiplied
/// sums. Ranks may give different factors, but all or none must give one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reduction {
    pub op: RedOp,
    pub factor: Option<Factor>,
}

impl From<RedOp> for Reduction {
    fn from(op: RedOp) -> Reduction {
        Reduction { op, factor: None }
    }
}

impl Reduction {
    /// The sum of every rank's contribution times its factor.
    pub fn pre_mul_sum(factor: Factor) -> Reduction {
        Reduction { op: RedOp::Sum, factor: Some(factor) }
    }
}
