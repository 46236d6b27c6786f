//! `tapeout image inspect | ls | cat`

use std::io::Write;

use serde::Serialize;

use super::find;
use crate::archive::tar_reader::Kind;
use crate::cli::args::{Ask, Global};
use crate::cli::ui;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::image::diff::{mode, rule};
use crate::image::files::{self, File, Files};
use crate::report::counted;
use crate::tree::RootPath;

#[derive(Serialize)]
struct Inspected {
    image: String,
    tag: String,
    digest: Digest,
    size: u64,
    config: serde_json::Value,
    annotations: serde_json::Value,
    layers: Vec<InspectedLayer>,
}

#[derive(Serialize)]
struct InspectedLayer {
    rule: String,
    media_type: String,
    digest: Digest,
    size: u64,
    diff_id: Digest,
}

/// Shows what an image's documents say.
pub fn inspect(global: &Global, ask: &Ask, image: &str) -> Result<()> {
    let found = find(global, ask, image)?;
    let image = &found.image;
    let read = |bytes: &[u8]| -> Result<serde_json::Value> {
        serde_json::from_slice(bytes).map_err(|e| Error::failed(format!("a document of the image can't be read: {e}")))
    };
    let layers = image.layers.iter().enumerate().map(|(at, layer)| InspectedLayer {
        rule: rule(image, at),
        media_type: layer.media_type.clone(),
        digest: layer.digest,
        size: layer.size,
        diff_id: layer.diff_id,
    });
    let inspected = Inspected {
        image: found.shown.clone(),
        tag: found.tag.clone(),
        digest: image.digest(),
        size: image.layers.iter().map(|layer| layer.size).sum(),
        config: read(&image.config.1)?,
        annotations: read(&image.manifest.1)?["annotations"].take(),
        layers: layers.collect(),
    };
    if global.json {
        return ui::print_json(&inspected);
    }
    let mut rows = vec![
        vec!["image".into(), inspected.image.clone()],
        vec!["tag".into(), inspected.tag.clone()],
        vec!["digest".into(), inspected.digest.to_string()],
        vec!["size".into(), format!("{} in {}", ui::size(inspected.size), counted(inspected.layers.len(), "layer"))],
    ];
    let config = &inspected.config;
    let platform = ["os", "architecture", "variant"].map(|name| config[name].as_str().unwrap_or_default());
    rows.push(vec!["platform".into(), platform.join("/").trim_end_matches('/').to_string()]);
    rows.extend(config["created"].as_str().map(|created| vec!["created".into(), created.to_string()]));
    for (name, value) in config["config"].as_object().into_iter().flatten() {
        // An argument may be empty or hold spaces: commands are shown as they would be written.
        let shown = if matches!(name.as_str(), "Entrypoint" | "Cmd" | "Shell") {
            vec![value.to_string()]
        } else {
            lines(value)
        };
        rows.extend(shown.into_iter().map(|line| vec![name.clone(), line]));
    }
    rows.extend(lines(&inspected.annotations).into_iter().map(|line| vec!["annotation".into(), line]));
    let mut text = ui::table(&[], &rows);
    text.push('\n');
    let rows = inspected.layers.iter().map(|layer| {
        let kind = layer.media_type.rsplit('.').next().unwrap_or_default();
        vec![
            layer.rule.clone(),
            ui::size(layer.size),
            kind.to_string(),
            layer.digest.to_string(),
            layer.diff_id.to_string(),
        ]
    });
    text.push_str(&ui::table(&["LAYER", ">SIZE", "KIND", "DIGEST", "DIFF ID"], &rows.collect::<Vec<_>>()));
    ui::print(&text);
    Ok(())
}

/// A setting as lines: a list's parts, `KEY=VALUE`, the keys of an object that has nothing but keys.
fn lines(value: &serde_json::Value) -> Vec<String> {
    let plain = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    match value {
        serde_json::Value::Null => vec![],
        serde_json::Value::Array(parts) => parts.iter().map(plain).collect(),
        serde_json::Value::Object(map) => map
            .iter()
            .map(|(key, value)| match value.as_object() {
                Some(inner) if inner.is_empty() => key.clone(),
                _ => format!("{key}={}", plain(value)),
            })
            .collect(),
        other => vec![plain(other)],
    }
}

#[derive(Serialize)]
struct Listed {
    path: String,
    mode: String,
    uid: u32,
    gid: u32,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<String>,
    rule: String,
}

/// Lists the files that a container would see.
pub fn ls(global: &Global, ask: &Ask, image: &str, path: Option<&str>, long: bool) -> Result<()> {
    let found = find(global, ask, image)?;
    let files = files::files(&found.image, false)?;
    let start = match path {
        Some(path) => at(&files, path, &found.shown)?.0,
        None => RootPath::root(),
    };
    let listed: Vec<_> = files
        .below(&start)
        .map(|path| {
            let file = &files.0[path];
            let link = match &file.item.kind {
                Kind::Link(target) => Some(String::from_utf8_lossy(target).into_owned()),
                _ => None,
            };
            Listed {
                path: path.to_string(),
                mode: mode(&file.item.kind, file.item.mode),
                uid: file.item.uid,
                gid: file.item.gid,
                size: file.size(),
                link,
                rule: rule(&found.image, file.layer),
            }
        })
        .collect();
    if global.json {
        return ui::print_json(&listed);
    }
    if !long {
        ui::print(&listed.iter().map(|one| format!("{}\n", ui::line(&one.path))).collect::<String>());
        return Ok(());
    }
    let rows: Vec<_> = listed
        .into_iter()
        .map(|one| {
            let name = one.link.map_or(one.path.clone(), |link| format!("{} -> {link}", one.path));
            vec![one.mode, format!("{}:{}", one.uid, one.gid), one.size.to_string(), one.rule, name]
        })
        .collect();
    ui::print(&ui::table(&["MODE", "OWNER", ">SIZE", "LAYER", "PATH"], &rows));
    Ok(())
}

fn at<'a>(files: &'a Files, path: &str, image: &str) -> Result<(RootPath, Option<&'a File>)> {
    files.find(&RootPath::new(path)?).ok_or_else(|| {
        Error::request(format!("{path} is not in {image}")).next(format!("see all that is: tapeout image ls {image}"))
    })
}

/// Writes a file's content to standard output, links followed inside the image.
pub fn cat(global: &Global, ask: &Ask, image: &str, path: &str) -> Result<()> {
    let found = find(global, ask, image)?;
    let files = files::files(&found.image, false)?;
    let (real, file) = at(&files, path, &found.shown)?;
    let file = file.filter(|file| matches!(file.item.kind, Kind::File(_))).ok_or_else(|| {
        Error::request(format!("{real} is no regular file")).next(format!("tapeout image ls -l {} {path}", found.shown))
    })?;
    let mut out = std::io::stdout().lock();
    files::contents(&found.image, &[file.content].into(), &mut |_, content| {
        let copied = std::io::copy(content, &mut out).and_then(|_| out.flush());
        match copied {
            // A reader that went away (`| head`) is no error.
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("write", "standard output", e)),
            _ => Ok(()),
        }
    })
}
