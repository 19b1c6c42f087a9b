#[derive(clap::Args)]
pub struct Args {}
pub async fn run(_: Args) -> anyhow::Result<std::process::ExitCode> {
    anyhow::bail!("not yet")
}
