//! The C ABI as C and C++ programs meet it: header, libraries, examples, misuse.
//!
//! The programs are compiled against a tree that `scripts/install` makes, so that is tested too.

use std::ffi::{CStr, c_int, c_void};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::ptr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use graccl::capi::*;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const SCRATCH: &str = env!("CARGO_TARGET_TMPDIR");

// ------------------------------------------------------------------------------------------------
// Header

/// What include/graccl.h has to be.
fn header() -> String {
    let root = Path::new(ROOT);
    let mut config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml");
    let [major, minor, patch] =
        [env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"), env!("CARGO_PKG_VERSION_PATCH")];
    config.after_includes.get_or_insert_default().push_str(&format!(
        "\n\n/** Version of this header: 10000 * major + 100 * minor + patch. */\n\
         #define GRACCL_VERSION (10000 * {major} + 100 * {minor} + {patch})"
    ));
    let mut builder = cbindgen::Builder::new().with_config(config);
    for area in ["handle", "comm", "config", "collective", "memory", "error"] {
        builder = builder.with_src(root.join(format!("src/capi/{area}.rs")));
    }
    let mut text = Vec::new();
    builder.generate().expect("src/capi can be read by cbindgen").write(&mut text);
    String::from_utf8(text).expect("UTF-8").trim_start().to_owned()
}

#[test]
fn header_is_current() {
    let path = Path::new(ROOT).join("include/graccl.h");
    let expected = header();
    if std::env::var_os("GRACCL_UPDATE_HEADER").is_some() {
        fs::write(&path, &expected).expect("include/graccl.h can be written");
    }
    let found = fs::read_to_string(&path).expect("include/graccl.h");
    let differing = found.lines().zip(expected.lines()).position(|(found, expected)| found != expected);
    assert!(
        found == expected,
        "include/graccl.h differs from src/capi at line {}: run scripts/header",
        differing.map_or(found.lines().count().min(expected.lines().count()), |n| n) + 1
    );
}

/// Names of the functions that the header declares.
fn declared() -> Vec<String> {
    let header = fs::read_to_string(Path::new(ROOT).join("include/graccl.h")).expect("include/graccl.h");
    let mut names: Vec<String> = header
        .lines()
        .filter(|line| line.starts_with("graccl_result_t graccl_") || line.starts_with("const char *graccl_"))
        .map(|line| line.split('(').next().unwrap().rsplit([' ', '*']).next().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

// ------------------------------------------------------------------------------------------------
// Tools

/// Whether a tool is there; a test that needs a missing one says so and passes.
fn have(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: there is no {tool} on this machine");
    }
    found
}

/// The tree that scripts/install made.
fn installed() -> &'static Path {
    static TREE: OnceLock<PathBuf> = OnceLock::new();
    TREE.get_or_init(|| {
        let tree = Path::new(SCRATCH).join("c_abi_install");
        let _ = fs::remove_dir_all(&tree);
        let path = std::env::join_paths(
            // The cargo that runs this test, also where it is not on the path.
            [Path::new(env!("CARGO")).parent().expect("a folder").to_owned()]
                .into_iter()
                .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
        )
        .expect("a search path");
        succeed(Command::new("sh").arg(Path::new(ROOT).join("scripts/install")).arg(&tree).env("PATH", path));
        tree
    })
}

/// The value of a field of the installed graccl.pc.
fn pc(field: &str) -> String {
    let text = fs::read_to_string(installed().join("lib/pkgconfig/graccl.pc")).expect("graccl.pc");
    let value = text.lines().find_map(|line| line.strip_prefix(&format!("{field}: ")));
    value.unwrap_or_else(|| panic!("{field} in graccl.pc")).to_owned()
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    out.into_owned()
}

#[derive(Clone, Copy, Debug)]
enum Library {
    Shared,
    Static,
}

/// Compiles a program against the installed library, with warnings as errors.
fn build(compiler: &str, source: &Path, library: Library) -> PathBuf {
    let tree = installed();
    let (name, kind) = (source.file_name().unwrap().to_str().unwrap(), source.extension().unwrap());
    let program = Path::new(SCRATCH).join(format!("{}_{library:?}", name.replace('.', "_")));
    let mut command = Command::new(compiler);
    command.arg(if kind == "cpp" { "-std=c++11" } else { "-std=c99" });
    command.args(["-Wall", "-Wextra", "-pedantic", "-Werror", "-O1", "-o"]).arg(&program).arg(source);
    command.arg("-I").arg(tree.join("include"));
    match library {
        Library::Shared => {
            let lib = tree.join("lib");
            command.arg("-L").arg(&lib).arg("-lgraccl").arg(format!("-Wl,-rpath,{}", lib.display()));
        }
        Library::Static => {
            command.arg(tree.join("lib/libgraccl.a"));
            command.args(pc("Libs.private").split_whitespace());
        }
    }
    succeed(&mut command);
    program
}

fn example(name: &str) -> PathBuf {
    Path::new(ROOT).join("c_examples").join(name)
}

/// Ends the processes that it still has when a test fails.
struct Job(Vec<Child>);

impl Drop for Job {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A program with none of the variables that could make it a rank of some other job.
fn bare(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let launcher = ["SLURM_", "OMPI_", "PMI_", "PMIX_", "GRACCL_"].iter().any(|p| text.starts_with(p));
        if launcher || ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"].contains(&&*text) {
            command.env_remove(&name);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the commands side by side to their end, for at most 60 s.
fn finish(commands: impl IntoIterator<Item = Command>) -> Vec<Output> {
    let mut job = Job(Vec::new());
    for mut command in commands {
        job.0.push(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")));
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while job.0.iter_mut().any(|child| child.try_wait().expect("wait").is_none()) {
        assert!(Instant::now() < deadline, "still running after 60 s");
        std::thread::sleep(Duration::from_millis(5));
    }
    job.0.drain(..).map(|child| child.wait_with_output().expect("output")).collect()
}

/// Runs `size` ranks of `program` as torchrun would; each has to say that it is well.
fn run_ranks(program: &Path, size: usize) {
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    let port = free.expect("a free port").port().to_string();
    let rank = |rank: usize| {
        let mut command = bare(program);
        command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
        command.env("WORLD_SIZE", size.to_string());
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", &port);
        command
    };
    for (rank, output) in finish((0..size).map(rank)).iter().enumerate() {
        assert!(output.status.success(), "{program:?} rank {rank} of {size}: {output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("rank {rank} of {size}: ok\n"));
    }
}

// ------------------------------------------------------------------------------------------------
// Programs

#[test]
fn header_compiles_as_c99_and_as_cpp11() {
    for (compiler, language, standard) in [("cc", "c", "c99"), ("c++", "c++", "c++11")] {
        if have(compiler) {
            succeed(
                Command::new(compiler)
                    .args(["-fsyntax-only", "-Wall", "-Wextra", "-pedantic", "-Werror", "-x", language])
                    .arg(format!("-std={standard}"))
                    .arg(Path::new(ROOT).join("include/graccl.h")),
            );
        }
    }
}

#[test]
fn c_example_runs_alone() {
    for library in [Library::Shared, Library::Static] {
        let program = build("cc", &example("all_reduce.c"), library);
        let output = &finish([bare(&program)])[0];
        assert!(output.status.success(), "{library:?}: {output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "rank 0 of 1: ok\n");
    }
}

#[test]
fn c_example_runs_with_1_2_and_4_ranks() {
    for library in [Library::Shared, Library::Static] {
        let program = build("cc", &example("all_reduce.c"), library);
        [1, 2, 4].into_iter().for_each(|size| run_ranks(&program, size));
    }
}

#[test]
fn cpp_example_runs_with_1_2_and_4_ranks() {
    if have("c++") {
        for library in [Library::Shared, Library::Static] {
            let program = build("c++", &example("all_reduce.cpp"), library);
            [1, 2, 4].into_iter().for_each(|size| run_ranks(&program, size));
        }
    }
}

#[test]
fn unique_id_example_runs_with_1_2_and_4_ranks() {
    let program = build("cc", &example("unique_id.c"), Library::Shared);
    for size in [1, 2, 4] {
        let mut command = bare(&program);
        command.arg(size.to_string());
        let output = &finish([command])[0];
        assert!(output.status.success(), "{size} ranks: {output:?}");
        let mut lines: Vec<_> = std::str::from_utf8(&output.stdout).unwrap().lines().collect();
        lines.sort_unstable();
        let expected: Vec<_> = (0..size).map(|rank| format!("rank {rank} of {size}: ok")).collect();
        assert_eq!(lines, expected);
    }
}

#[test]
fn an_example_that_cannot_join_says_why() {
    let program = build("cc", &example("all_reduce.c"), Library::Shared);
    let mut command = bare(&program);
    command.env("GRACCL_TIMEOUT", "soon");
    let output = &finish([command])[0];
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("GRACCL_TIMEOUT=soon") && text.contains("[graccl_comm_init_env]"), "{text}");
}

#[test]
fn pkg_config_knows_the_library() {
    if !have("pkg-config") {
        return;
    }
    let tree = installed();
    let ask = |arguments: &[&str]| {
        let path = tree.join("lib/pkgconfig");
        succeed(Command::new("pkg-config").args(arguments).arg("graccl").env("PKG_CONFIG_PATH", path))
    };
    assert_eq!(ask(&["--modversion"]).trim(), env!("CARGO_PKG_VERSION"));
    let program = Path::new(SCRATCH).join("all_reduce_pkg_config");
    let flags = ask(&["--cflags", "--libs"]);
    let mut compile = Command::new("cc");
    compile.arg(example("all_reduce.c")).args(flags.split_whitespace()).arg("-o").arg(&program);
    succeed(&mut compile);
    let mut command = bare(&program);
    command.env("LD_LIBRARY_PATH", tree.join("lib"));
    let output = &finish([command])[0];
    assert!(output.status.success(), "{output:?}");
}

#[test]
#[cfg(target_os = "linux")]
fn shared_library_exports_what_the_header_declares_and_no_more() {
    if !have("nm") || !have("readelf") {
        return;
    }
    let library = installed().join("lib/libgraccl.so");
    let symbols = succeed(Command::new("nm").args(["-D", "--defined-only"]).arg(&library));
    let mut exported: Vec<_> =
        symbols.lines().map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect();
    exported.sort();
    assert_eq!(exported, declared());
    let dynamic = succeed(Command::new("readelf").arg("-d").arg(&library));
    let soname = format!("soname: [libgraccl.so.{}]", env!("CARGO_PKG_VERSION_MAJOR"));
    assert!(dynamic.contains(&soname), "{soname} in\n{dynamic}");
    assert!(installed().join(format!("lib/libgraccl.so.{}", env!("CARGO_PKG_VERSION"))).is_file());
    assert!(installed().join("bin/graccl").is_file());
}

/// What C's compiler makes of the header, to compare with what Rust's makes of the same types.
const LAYOUT: &str = r#"
#include <stdio.h>
#include <graccl.h>
int main(void)
{
    graccl_config_t unset = GRACCL_CONFIG_INITIALIZER;
    int version;
    if (graccl_get_version(&version) != GRACCL_SUCCESS) return 1;
    printf("%zu %zu %zu %zu %zu ", sizeof(graccl_config_t), offsetof(graccl_config_t, timeout_ms),
           offsetof(graccl_config_t, transport), offsetof(graccl_config_t, algorithm),
           offsetof(graccl_config_t, verify));
    printf("%zu %zu %zu ", sizeof(graccl_unique_id_t), sizeof(graccl_result_t), sizeof(graccl_data_type_t));
    printf("%d %d ", version == GRACCL_VERSION, unset.size == sizeof unset);
    printf("%d\n", unset.magic == GRACCL_CONFIG_MAGIC && unset.timeout_ms == GRACCL_UNSET
           && unset.init_timeout_ms == GRACCL_UNSET && unset.transport == NULL
           && unset.algorithm == NULL && unset.verify == GRACCL_UNSET);
    return 0;
}
"#;

#[test]
fn c_and_rust_agree_on_types() {
    let numbers = [
        size_of::<graccl_config_t>(),
        std::mem::offset_of!(graccl_config_t, timeout_ms),
        std::mem::offset_of!(graccl_config_t, transport),
        std::mem::offset_of!(graccl_config_t, algorithm),
        std::mem::offset_of!(graccl_config_t, verify),
        size_of::<graccl_unique_id_t>(),
        size_of::<ResultInt>(),
        size_of::<DataTypeInt>(),
    ];
    let expected: String = numbers.iter().map(|number| format!("{number} ")).collect();
    for (compiler, name) in [("cc", "layout.c"), ("c++", "layout.cpp")] {
        if have(compiler) {
            let source = Path::new(SCRATCH).join(name);
            fs::write(&source, LAYOUT).expect("the source can be written");
            let found = succeed(&mut bare(&build(compiler, &source, Library::Shared)));
            assert_eq!(found, format!("{expected}1 1 1\n"), "{name}");
        }
    }
}

// ------------------------------------------------------------------------------------------------
// Misuse, called from here as C would call it

const SUCCESS: ResultInt = graccl_result_t::GRACCL_SUCCESS as ResultInt;
const INVALID_ARGUMENT: ResultInt = graccl_result_t::GRACCL_INVALID_ARGUMENT as ResultInt;
const INVALID_USAGE: ResultInt = graccl_result_t::GRACCL_INVALID_USAGE as ResultInt;
const F32: DataTypeInt = graccl_data_type_t::GRACCL_F32 as DataTypeInt;
const F64: DataTypeInt = graccl_data_type_t::GRACCL_F64 as DataTypeInt;
const SUM: RedOpInt = graccl_red_op_t::GRACCL_SUM as RedOpInt;
const NULL_COMM: *mut graccl_comm_t = ptr::null_mut();

fn text(text: *const std::ffi::c_char) -> String {
    // SAFETY: graccl's texts are never null, and are copied before the next call.
    unsafe { CStr::from_ptr(text) }.to_str().expect("UTF-8").to_owned()
}

#[track_caller]
fn refused(code: ResultInt, expected: ResultInt, text_has: &str) {
    let last = text(graccl_last_error(NULL_COMM));
    assert_eq!(code, expected, "{last}");
    assert!(last.contains(text_has), "\"{last}\" lacks \"{text_has}\"");
}

/// A communicator of one rank.
fn alone() -> *mut graccl_comm_t {
    let mut id = graccl_unique_id_t { internal: [0; GRACCL_UNIQUE_ID_BYTES] };
    let mut comm = ptr::null_mut();
    // SAFETY: both can be written.
    let codes = unsafe { [graccl_get_unique_id(&mut id), graccl_comm_init_rank(&mut comm, 1, id, 0)] };
    assert_eq!(codes, [SUCCESS; 2], "{}", text(graccl_last_error(NULL_COMM)));
    assert!(!comm.is_null());
    comm
}

fn destroy(comm: *mut graccl_comm_t) {
    // SAFETY: no other thread uses it.
    assert_eq!(unsafe { graccl_comm_destroy(comm) }, SUCCESS);
}

#[test]
fn null_arguments_are_named() {
    let comm = alone();
    let mut data = [1.0f32; 4];
    let data: *mut c_void = data.as_mut_ptr().cast();
    let id = || graccl_unique_id_t { internal: [0; GRACCL_UNIQUE_ID_BYTES] };
    let mut number: c_int = 0;
    // SAFETY: whatever is not null is valid.
    unsafe {
        let refuse = |code, name: &str, function: &str| {
            refused(code, INVALID_ARGUMENT, &format!("{name} is NULL [{function}]"));
        };
        refuse(graccl_get_version(ptr::null_mut()), "version", "graccl_get_version");
        refuse(graccl_get_unique_id(ptr::null_mut()), "id", "graccl_get_unique_id");
        refuse(graccl_comm_init_rank(ptr::null_mut(), 1, id(), 0), "comm", "graccl_comm_init_rank");
        refuse(
            graccl_comm_init_rank_config(ptr::null_mut(), 1, id(), 0, ptr::null()),
            "comm",
            "graccl_comm_init_rank_config",
        );
        refuse(graccl_comm_init_env(ptr::null_mut()), "comm", "graccl_comm_init_env");
        refuse(graccl_comm_rank(comm, ptr::null_mut()), "rank", "graccl_comm_rank");
        refuse(graccl_comm_rank(NULL_COMM, &mut number), "comm", "graccl_comm_rank");
        refuse(graccl_comm_size(comm, ptr::null_mut()), "size", "graccl_comm_size");
        refuse(graccl_comm_size(NULL_COMM, &mut number), "comm", "graccl_comm_size");
        refuse(graccl_comm_abort(NULL_COMM), "comm", "graccl_comm_abort");
        refuse(graccl_barrier(NULL_COMM), "comm", "graccl_barrier");
        let reduce = |send, recv, comm| graccl_all_reduce(send, recv, 4, F32, SUM, comm);
        refuse(reduce(ptr::null(), data, comm), "send", "graccl_all_reduce");
        refuse(reduce(data, ptr::null_mut(), comm), "recv", "graccl_all_reduce");
        refuse(reduce(data, data, NULL_COMM), "comm", "graccl_all_reduce");
        refuse(graccl_mem_alloc(ptr::null_mut(), 1), "ptr", "graccl_mem_alloc");

        // Where null makes sense.
        assert_eq!(graccl_comm_destroy(NULL_COMM), SUCCESS);
        assert_eq!(graccl_mem_free(ptr::null_mut()), SUCCESS);
        assert_eq!(graccl_all_reduce(ptr::null(), ptr::null_mut(), 0, F32, SUM, comm), SUCCESS);
    }
    destroy(comm);
}

#[test]
fn unknown_numbers_are_named() {
    let comm = alone();
    let mut data = [1.0f64; 4];
    let data: *mut c_void = data.as_mut_ptr().cast();
    // SAFETY: the buffer has 4 elements of the largest type.
    unsafe {
        for wrong in [-1, 10, c_int::MAX, c_int::MIN] {
            refused(
                graccl_all_reduce(data, data, 4, wrong, SUM, comm),
                INVALID_ARGUMENT,
                &format!("data_type = {wrong} is not a graccl_data_type_t"),
            );
        }
        for wrong in [-1, 5, c_int::MAX, c_int::MIN] {
            refused(
                graccl_all_reduce(data, data, 4, F32, wrong, comm),
                INVALID_ARGUMENT,
                &format!("op = {wrong} is not a graccl_red_op_t"),
            );
        }
        // None of these was carried out, and the communicator lives on.
        for (data_type, op) in (0..10).flat_map(|data_type| (0..5).map(move |op| (data_type, op))) {
            assert_eq!(graccl_all_reduce(data, data, 4, data_type, op, comm), SUCCESS, "{data_type} {op}");
        }
    }
    destroy(comm);
}

#[test]
fn counts_beyond_memory_are_refused() {
    let comm = alone();
    let mut data = [1.0f64; 4];
    let data: *mut c_void = data.as_mut_ptr().cast();
    // SAFETY: the call has to be refused before it touches the data.
    let code = unsafe { graccl_all_reduce(data, data, usize::MAX / 4, F64, SUM, comm) };
    refused(code, INVALID_ARGUMENT, "graccl_all_reduce");
    destroy(comm);
}

#[test]
fn ranks_outside_the_job_are_refused() {
    for (nranks, rank, named) in
        [(0, 0, "nranks = 0"), (-3, 0, "nranks = -3"), (2, 2, "rank = 2"), (2, -1, "rank = -1")]
    {
        let id = graccl_unique_id_t { internal: [0; GRACCL_UNIQUE_ID_BYTES] };
        let mut comm = ptr::without_provenance_mut(1);
        // SAFETY: comm can be written.
        refused(unsafe { graccl_comm_init_rank(&mut comm, nranks, id, rank) }, INVALID_ARGUMENT, named);
        assert!(comm.is_null(), "set to NULL by the error");
    }
}

#[test]
fn a_destroyed_communicator_is_refused_everywhere() {
    let comm = alone();
    let mut data = [1.0f32; 4];
    let data: *mut c_void = data.as_mut_ptr().cast();
    let mut number: c_int = 0;
    destroy(comm);
    let dead = "comm is not a live communicator";
    // SAFETY: the pointers are valid; comm is no pointer to graccl, only a number.
    unsafe {
        refused(graccl_comm_destroy(comm), INVALID_USAGE, dead);
        refused(graccl_comm_abort(comm), INVALID_USAGE, dead);
        refused(graccl_comm_rank(comm, &mut number), INVALID_USAGE, dead);
        refused(graccl_comm_size(comm, &mut number), INVALID_USAGE, dead);
        refused(graccl_barrier(comm), INVALID_USAGE, dead);
        refused(graccl_all_reduce(data, data, 4, F32, SUM, comm), INVALID_USAGE, dead);
        // Nor does a new communicator revive the old handle.
        let next = alone();
        assert_ne!(next, comm);
        refused(graccl_barrier(comm), INVALID_USAGE, dead);
        destroy(next);
        // A pointer to something else.
        refused(graccl_barrier((&raw mut number).cast()), INVALID_USAGE, dead);
    }
}

#[test]
fn every_code_has_a_text() {
    let texts: Vec<_> = (0..10).map(|code| text(graccl_get_error_string(code))).collect();
    assert_eq!(texts[0], "success");
    assert_eq!(texts[8], "a deadline passed");
    for wrong in [-1, 10, c_int::MAX, c_int::MIN] {
        assert_eq!(text(graccl_get_error_string(wrong)), "unknown result code");
    }
    assert!((1..10).all(|n| !texts[..n].contains(&texts[n]) && !texts[n].is_empty()), "{texts:?}");
}

#[test]
fn error_texts_belong_to_a_thread_and_then_to_the_communicator() {
    let comm = alone();
    assert_eq!(text(graccl_last_error(comm)), "no error");
    std::thread::scope(|scope| {
        let other = ptr::NonNull::new(comm).unwrap().addr().get();
        scope.spawn(move || {
            let comm = ptr::without_provenance_mut(other);
            // SAFETY: null is what is tested.
            unsafe { graccl_comm_rank(comm, ptr::null_mut()) };
            assert!(text(graccl_last_error(ptr::null())).starts_with("rank is NULL"));
        });
    });
    // This thread had no error, the communicator had.
    assert_eq!(text(graccl_last_error(NULL_COMM)), "no error");
    assert!(text(graccl_last_error(comm)).starts_with("rank is NULL [graccl_comm_rank]"));
    // Success does not clear a text; the thread's own comes first.
    // SAFETY: as above.
    unsafe { graccl_get_version(ptr::null_mut()) };
    let mut version = 0;
    // SAFETY: version can be written.
    assert_eq!(unsafe { graccl_get_version(&mut version) }, SUCCESS);
    assert!(text(graccl_last_error(comm)).starts_with("version is NULL"));
    destroy(comm);
}

#[test]
fn memory_comes_zeroed_and_aligned_or_not_at_all() {
    let mut memory = ptr::null_mut();
    // SAFETY: memory can be written; it has 10000 bytes.
    unsafe {
        assert_eq!(graccl_mem_alloc(&mut memory, 10_000), SUCCESS);
        assert_eq!(memory.addr() % 4096, 0);
        assert!(std::slice::from_raw_parts(memory.cast::<u8>(), 10_000).iter().all(|&byte| byte == 0));
        assert_eq!(graccl_mem_free(memory), SUCCESS);
        let code = graccl_mem_alloc(&mut memory, usize::MAX);
        refused(code, code, "");
        assert!(code == INVALID_ARGUMENT || code == graccl_result_t::GRACCL_SYSTEM_ERROR as ResultInt);
        assert!(memory.is_null());
    }
}

#[test]
fn settings_of_c_callers_count() {
    let mut config = graccl_config_t {
        size: size_of::<graccl_config_t>(),
        magic: GRACCL_CONFIG_MAGIC,
        version: 100,
        timeout_ms: 1000,
        init_timeout_ms: 1000,
        transport: c"auto".as_ptr(),
        algorithm: c"auto".as_ptr(),
        verify: 0,
    };
    let mut id = graccl_unique_id_t { internal: [0; GRACCL_UNIQUE_ID_BYTES] };
    let mut comm = ptr::null_mut();
    // SAFETY: all can be written, and config is a whole struct with C strings.
    unsafe {
        assert_eq!(graccl_get_unique_id(&mut id), SUCCESS);
        assert_eq!(graccl_comm_init_rank_config(&mut comm, 1, id, 0, &config), SUCCESS);
        destroy(comm);
        config.magic = 0;
        let id = graccl_unique_id_t { internal: [0; GRACCL_UNIQUE_ID_BYTES] };
        let code = graccl_comm_init_rank_config(&mut comm, 1, id, 0, &config);
        refused(code, INVALID_ARGUMENT, "config.magic");
        assert!(comm.is_null());
    }
}
