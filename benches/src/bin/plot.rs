//! Draws the figures that `cost` has written as bars: `plot costs.tsv costs.svg`. `scripts/costs` does both.

use std::{env, error::Error, fmt::Write as _, fs, thread};

const WIDTH: usize = 760;
/// Where the bars begin.
const LEFT: usize = 330;
/// How long the longest of a group is.
const LONGEST: f64 = 340.0;
const LINE: usize = 20;
const OURS: &str = "#0b6e4f";
const RIVALS: &str = "#9aa5b1";

struct Group<'a> {
    title: &'a str,
    bars: Vec<(&'a str, f64)>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [figures, picture] = &*arguments else { return Err("plot costs.tsv costs.svg".into()) };
    let figures = fs::read_to_string(figures)?;
    let groups = read(&figures)?;
    fs::write(picture, draw(&groups, &machine()))?;
    Ok(())
}

fn read(figures: &str) -> Result<Vec<Group<'_>>, Box<dyn Error>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for line in figures.lines() {
        let [title, name, value] = *line.split('\t').collect::<Vec<_>>() else {
            return Err(format!("not a figure: {line}").into());
        };
        if groups.last().is_none_or(|group| group.title != title) {
            groups.push(Group { title, bars: Vec::new() });
        }
        let bar = (name, value.parse()?);
        groups.last_mut().into_iter().for_each(|group| group.bars.push(bar));
    }
    Ok(groups)
}

fn draw(groups: &[Group<'_>], machine: &str) -> String {
    let lines: usize = groups.iter().map(|group| group.bars.len() + 2).sum();
    let height = (lines + 3) * LINE;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"13\">\n\
         <title>What an event and a request cost, in nanoseconds</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    let mut y = LINE;
    for Group { title, bars } in groups {
        y += LINE;
        text(&mut svg, 12, y, "start\" font-weight=\"600", title);
        let longest = bars.iter().map(|(_, value)| *value).fold(1.0, f64::max);
        for (name, value) in bars {
            y += LINE;
            let is_ours = ["handle.track", "our layer", "guard()", "Drain"].iter().any(|ours| name.starts_with(ours));
            let (colour, length) = (if is_ours { OURS } else { RIVALS }, (value / longest * LONGEST).max(1.0));
            text(&mut svg, LEFT - 10, y, "end", name);
            let top = y - 11;
            writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{top}\" width=\"{length:.1}\" height=\"14\" rx=\"2\" fill=\"{colour}\"/>"
            )
            .expect("a string takes all");
            text(&mut svg, LEFT + length as usize + 8, y, "start", &format!("{value:.0} ns"));
        }
        y += LINE;
    }
    text(&mut svg, 12, y + LINE, "start\" fill=\"#52606d", machine);
    svg.push_str("</svg>\n");
    svg
}

fn text(svg: &mut String, x: usize, y: usize, anchor: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    writeln!(svg, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{text}</text>").expect("a string takes all");
}

/// What it was measured on.
fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, model)| model);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    format!(
        "Medians of runs in turn, in nanoseconds. {}, {cores} cores, {}.",
        model.unwrap_or("Unknown processor"),
        env::consts::OS
    )
}
