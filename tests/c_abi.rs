//! The C ABI as C and C++ programs meet it: header, libraries, examples.
//!
//! The programs are compiled against a tree that `scripts/install` makes, so that is tested too.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
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
    let areas = [
        "handle", "comm", "config", "types", "folding", "moving", "red_op", "p2p", "request", "group",
        "bucketer", "memory", "error",
    ];
    for area in areas {
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
        common::skip(&format!("there is no {tool} on this machine"));
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
    // Tests run side by side: each has programs of its own.
    let test = std::thread::current().name().expect("tests run on named threads").to_owned();
    let program = Path::new(SCRATCH).join(format!("{test}_{}_{library:?}", name.replace('.', "_")));
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

/// `size` ranks of `program`, as torchrun would start them.
fn job(program: &Path, size: usize) -> Vec<Command> {
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    let port = free.expect("a free port").port().to_string();
    let rank = |rank: usize| {
        let mut command = bare(program);
        command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
        command.env("WORLD_SIZE", size.to_string());
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", &port);
        command
    };
    (0..size).map(rank).collect()
}

/// Runs them; each has to say that it is well.
fn run_ranks(program: &Path, size: usize) {
    for (rank, output) in finish(job(program, size)).iter().enumerate() {
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
fn examples_of_every_area_run_with_1_2_and_4_ranks() {
    for name in ["collectives.c", "overlap.c", "split.c"] {
        let program = build("cc", &example(name), Library::Shared);
        [1, 2, 4].into_iter().for_each(|size| run_ranks(&program, size));
    }
}

#[test]
fn bucketer_example_plays_a_model() {
    let program = build("cc", &example("bucketer.c"), Library::Shared);
    let model = Path::new(ROOT).join("src/plan/data/alexnet.csv");
    for (size, more) in [(1, &[][..]), (2, &[]), (2, &["late", "int8"])] {
        let mut ranks = job(&program, size);
        for rank in &mut ranks {
            // Few steps, much faster than life.
            rank.arg(&model).args(["2", "200"]).args(more);
        }
        let outputs = finish(ranks);
        assert!(outputs.iter().all(|o| o.status.success()), "{size} ranks: {outputs:?}");
        let text: String = outputs.iter().map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).collect();
        for row in ["planned", "one for each tensor", "25 MB", "16 tensors", "bucket 0: ", "hidden"] {
            assert_eq!(text.matches(row).count(), 1, "{row}: {text}");
        }
    }
}

#[test]
fn group_example_drives_1_2_and_4_ranks() {
    let program = build("cc", &example("group.c"), Library::Shared);
    for size in [1, 2, 4] {
        let mut command = bare(&program);
        command.arg(size.to_string());
        let output = &finish([command])[0];
        assert!(output.status.success(), "{size} ranks: {output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{size} ranks: ok\n"));
    }
}

#[test]
fn failure_example_goes_on_with_1_and_3_survivors() {
    let program = build("cc", &example("failure.c"), Library::Shared);
    run_ranks(&program, 1);
    for size in [2, 4] {
        for (rank, output) in finish(job(&program, size)).iter().enumerate() {
            assert!(output.status.success(), "rank {rank} of {size}: {output:?}");
            let end = if rank == size - 1 { "dies" } else { "ok" };
            assert_eq!(String::from_utf8_lossy(&output.stdout), format!("rank {rank} of {size}: {end}\n"));
        }
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
    printf("%zu %zu %zu ", offsetof(graccl_config_t, blocking), offsetof(graccl_config_t, deterministic),
           offsetof(graccl_config_t, encrypt));
    printf("%zu %zu %zu ", sizeof(graccl_unique_id_t), sizeof(graccl_result_t), sizeof(graccl_data_type_t));
    printf("%d %d ", version == GRACCL_VERSION, unset.size == sizeof unset);
    printf("%d\n", unset.magic == GRACCL_CONFIG_MAGIC && unset.timeout_ms == GRACCL_UNSET
           && unset.init_timeout_ms == GRACCL_UNSET && unset.transport == NULL
           && unset.algorithm == NULL && unset.verify == GRACCL_UNSET && unset.blocking == GRACCL_UNSET
           && unset.deterministic == GRACCL_UNSET && unset.encrypt == GRACCL_UNSET);
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
        std::mem::offset_of!(graccl_config_t, blocking),
        std::mem::offset_of!(graccl_config_t, deterministic),
        std::mem::offset_of!(graccl_config_t, encrypt),
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
