//! `tapeout export`

use std::io::{Read, Seek, Write};

use super::image::{Found, find};
use crate::archive::decompress::decompress;
use crate::archive::tar_reader::Limits;
use crate::archive::whole_file;
use crate::cli::args::{Export as Args, ExportFormat, Global};
use crate::cli::{context, ui};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::image::archive::{DockerLayer, write_docker, write_oci};
use crate::image::layout::LayoutImage;

/// Writes an image into one file.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let found = find(global, &args.ask, &args.image)?;
    let to = context::directory(global)?.join(&args.output);
    whole_file::write(&to, |out| match args.format {
        ExportFormat::OciArchive => oci(&found, out),
        ExportFormat::DockerArchive => docker(&found, out),
    })?;
    if global.json {
        return ui::print_json(&serde_json::json!({"image": found.shown, "digest": found.image.digest(), "path": to}));
    }
    ui::print(&format!("{} {}", found.image.digest(), to.display()));
    Ok(())
}

/// REPOSITORY:TAG, in full: without a registry it is docker's own, which docker leaves out where it shows names.
fn name(found: &Found) -> Option<String> {
    let name = found.name.as_ref()?.to_lowercase();
    let registry = match name.split_once('/') {
        None => "docker.io/library/",
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => "",
        Some(_) => "docker.io/",
    };
    Some(format!("{registry}{name}:{}", found.tag))
}

fn oci(found: &Found, out: &mut dyn Write) -> Result<()> {
    let image = &found.image;
    let config = Digest::of(&image.config.1);
    let layout = LayoutImage {
        tag: found.tag.clone(),
        name: name(found),
        platform: found.platform.clone(),
        manifest: (image.digest(), image.manifest.1.len() as u64),
        blobs: std::iter::once(config).chain(image.layers.iter().map(|layer| layer.digest)).collect(),
    };
    let open = |digest: &Digest| -> Result<(Box<dyn Read>, u64)> {
        for document in [&image.manifest.1, &image.config.1] {
            if Digest::of(document) == *digest {
                return Ok((Box::new(std::io::Cursor::new(document.clone())), document.len() as u64));
            }
        }
        let at = image.layers.iter().position(|layer| layer.digest == *digest);
        let at = at.ok_or_else(|| Error::failed(format!("the image has no blob {digest}")))?;
        Ok((Box::new(image.open_layer(at)?), image.layers[at].size))
    };
    write_oci(&[layout], &open, out)
}

/// docker loads plain and gzip layers; others are written plain.
fn docker(found: &Found, out: &mut dyn Write) -> Result<()> {
    let image = &found.image;
    let names: Vec<_> = name(found).into_iter().collect();
    let diff_ids: Vec<_> = image.layers.iter().map(|layer| layer.diff_id).collect();
    let layer = |at: usize| -> Result<DockerLayer> {
        let layer = &image.layers[at];
        let file = image.open_layer(at)?;
        if !layer.media_type.ends_with("zstd") {
            let reader = Box::new(file);
            return Ok(DockerLayer { diff_id: layer.diff_id, reader, size: layer.size, digest: layer.digest });
        }
        // tar wants to know the size first, and a zstd stream need not say it.
        let most = Limits::default().bytes;
        let failed = |e: std::io::Error| Error::failed(format!("layer {} can't be read: {e}", layer.digest));
        let mut plain = decompress(file, most).map_err(failed)?;
        let size = std::io::copy(&mut plain, &mut std::io::sink()).map_err(failed)?;
        drop(plain);
        let mut file = image.open_layer(at)?;
        file.rewind().map_err(failed)?;
        let reader = decompress(file, most).map_err(failed)?;
        Ok(DockerLayer { diff_id: layer.diff_id, reader, size, digest: layer.diff_id })
    };
    write_docker(&image.config.1, &names, &diff_ids, &layer, out)
}
