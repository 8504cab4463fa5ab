//! Draws the picture of ARCHITECTURE.md, an event and a drain on their way through the modules:
//! `architecture docs/architecture.svg`.

use std::{env, error::Error, fmt::Write as _, fs};

const WIDTH: usize = 980;
const LEFT: usize = 130;
const TOP: usize = 62;
const ROW: usize = 62;
const GAP: usize = 56;

const INK: &str = "#1f2933";
const MUTED: &str = "#52606d";
const EVENT: &str = "#0b6e4f";
const DRAIN: &str = "#1d4ed8";

/// The modules, from the public layer down.
const MODULES: [&str; 7] = ["handle, drain", "layer", "exchange", "event", "tokio", "context", "registry"];

/// One step: the column, the row, and what happens.
struct Step {
    column: usize,
    row: usize,
    text: [&'static str; 2],
}

const fn step(column: usize, row: usize, first: &'static str, second: &'static str) -> Step {
    Step { column, row, text: [first, second] }
}

const TRACKED: [Step; 10] = [
    step(0, 2, "events.track", "boxes the future"),
    step(1, 5, "which", "runtime?"),
    step(2, 6, "accept: entry,", "slot, ticket"),
    step(3, 2, "keep until the", "response is over"),
    step(5, 1, "last frame,", "or drop"),
    step(6, 2, "end: facts,", "observers"),
    step(7, 4, "one task for all", "of the response"),
    step(8, 3, "poll in order,", "catch panics"),
    step(9, 6, "leave: count,", "release, wake"),
    step(10, 0, "drain looks", "again"),
];

const DRAINED: [Step; 5] = [
    step(4, 0, "drain(limit):", "first poll"),
    step(5, 6, "look under all locks,", "register, look"),
    step(6, 0, "quiet period", "over?"),
    step(7, 6, "phase Closing", ""),
    step(11, 6, "phase Closed,", "report"),
];

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::args().nth(1).ok_or("architecture docs/architecture.svg")?;
    fs::write(path, draw()?)?;
    Ok(())
}

fn draw() -> Result<String, std::fmt::Error> {
    let height = TOP + MODULES.len() * ROW + 16;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"11\">\n\
         <title>An event and a drain on their way through the modules</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    for (row, module) in MODULES.iter().enumerate() {
        let (top, shade) = (TOP + row * ROW, if row % 2 == 0 { "#f0f4f8" } else { "#ffffff" });
        writeln!(svg, "<rect x=\"0\" y=\"{top}\" width=\"{WIDTH}\" height=\"{ROW}\" fill=\"{shade}\"/>")?;
        let middle = top + ROW / 2 + 4;
        writeln!(
            svg,
            "<text x=\"14\" y=\"{middle}\" font-size=\"13\" font-weight=\"600\" fill=\"{INK}\">{module}</text>"
        )?;
    }
    for (x, colour, text) in [(LEFT, EVENT, "an event of a response"), (LEFT + 200, DRAIN, "a drain")] {
        writeln!(svg, "<circle cx=\"{x}\" cy=\"26\" r=\"7\" fill=\"{colour}\"/>")?;
        writeln!(svg, "<text x=\"{}\" y=\"30\" font-size=\"13\" fill=\"{INK}\">{text}</text>", x + 14)?;
    }
    writeln!(svg, "<text x=\"{}\" y=\"50\" fill=\"{MUTED}\">time &#8594;</text>", LEFT - 7)?;
    path(&mut svg, &TRACKED, EVENT)?;
    path(&mut svg, &DRAINED, DRAIN)?;
    svg.push_str("</svg>\n");
    Ok(svg)
}

/// Steps that are joined by lines, each with its number and its text below.
fn path(svg: &mut String, steps: &[Step], colour: &str) -> std::fmt::Result {
    // Two paths in one row stand a little apart.
    let shift = if colour == DRAIN { 8 } else { 0 };
    let at = |step: &Step| (LEFT + 20 + step.column * (GAP + 14), TOP + step.row * ROW + 16 + shift);
    let points: Vec<_> = steps
        .iter()
        .map(|step| {
            let (x, y) = at(step);
            format!("{x},{y}")
        })
        .collect();
    writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" opacity=\"0.55\"/>",
        points.join(" ")
    )?;
    for (number, step) in steps.iter().enumerate() {
        let (x, y) = at(step);
        writeln!(svg, "<circle cx=\"{x}\" cy=\"{y}\" r=\"9\" fill=\"{colour}\"/>")?;
        let number = number + 1;
        writeln!(
            svg,
            "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\" font-weight=\"600\" fill=\"#ffffff\">{number}</text>",
            y + 4
        )?;
        for (line, text) in step.text.iter().enumerate() {
            let y = y + 20 + line * 12;
            writeln!(
                svg,
                "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\" fill=\"{INK}\" stroke=\"#ffffff\" stroke-width=\"3\" \
                 paint-order=\"stroke\">{text}</text>"
            )?;
        }
    }
    Ok(())
}
