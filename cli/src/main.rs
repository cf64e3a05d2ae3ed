use std::process::ExitCode;

fn main() -> ExitCode {
    graccl_cli::main()
}
