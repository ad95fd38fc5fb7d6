//! The `tailway` command.

use clap::Parser;
use std::process::ExitCode;
use tailway::{
    app,
    args::{Arguments, CheckArguments, Verb},
    telemetry,
};

#[expect(
    clippy::print_stderr,
    reason = "the command's own errors go to the terminal"
)]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = telemetry::start(&arguments.log) {
        eprintln!("error: {error}");
        return ExitCode::from(2);
    }
    let result = match arguments.verb {
        Verb::Check(check) => return run_check(&check),
        Verb::Run(run) => block_on(app::run(*run)),
        Verb::Controller(controller) => block_on(app::controller(*controller)),
        Verb::Proxy(proxy) => block_on(app::proxy(*proxy)),
        Verb::Extension(extension) => block_on(app::extension(*extension)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn block_on<E: std::fmt::Display>(verb: impl Future<Output = Result<(), E>>) -> Result<(), String> {
    runtime()?.block_on(verb).map_err(|error| error.to_string())
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))
}

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the answer of the command"
)]
fn run_check(arguments: &CheckArguments) -> ExitCode {
    match app::check(arguments) {
        Ok(checked) => {
            for warning in &checked.warnings {
                eprintln!("warning: {warning}");
            }
            print!("{}", checked.text);
            ExitCode::from(u8::from(!checked.all_accepted))
        }
        Err(error) => {
            for problem in &error.problems {
                eprintln!("error: {problem}");
            }
            ExitCode::FAILURE
        }
    }
}
