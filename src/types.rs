//! Element types and reduction operations. The numbers are NCCL's, so that tables and readers agree.

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
}

impl DataType {
    pub const ALL: [DataType; 10] = [
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
    ];
    /// Bytes of one element.
    #[inline]
    pub const fn size(self) -> usize {
        match self {
            DataType::I8 | DataType::U8 => 1,
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
    /// For every element type; rounded to the type the products are rounded to.
    Float(f64),
    /// For integer types, exactly.
    Int(i64),
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
