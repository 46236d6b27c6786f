//! The bundle's README: how to check, load and start the pod. Every name in it is one that a shell reads as
//! it stands (`plan` sees to that).

use std::fmt::Write;

use super::described::Pod;

/// The whole text.
pub fn write(pod: &Pod) -> String {
    let mut text = String::new();
    let version = pod.version.as_ref().map(|v| format!(", version {}", one_line(v))).unwrap_or_default();
    let title = format!("The pod {}{version}", pod.name);
    let _ = writeln!(text, "{title}\n{}\n", "=".repeat(title.len()));
    let _ = writeln!(text, "Built by tapeout from {}. It needs podman 4.3 or newer, and no network.", pod.label);
    let _ = writeln!(text, "Load and start it, in this folder:\n");
    let mut step = 0;
    let mut next = |text: &mut String, what: &str, lines: &[String]| {
        step += 1;
        let _ = writeln!(text, "{step}. {what}:\n\n    {}\n", lines.join(" &&\n    "));
    };
    let load = pod
        .images
        .iter()
        .map(|image| format!("podman tag \"$(podman pull -q oci:images:{})\" {}", image.name, image.reference));
    let load: Vec<String> = load.collect();
    if !load.is_empty() {
        next(&mut text, "Load the images", &load);
    }
    let fill = pod.volumes.iter().filter_map(|volume| Some((volume.claim.as_ref()?, volume.archive.as_ref()?)));
    let fill: Vec<String> = fill.map(|(claim, archive)| format!("{{ podman volume exists {claim} || podman volume create {claim}; }} &&\n    podman volume import {claim} {archive}")).collect();
    if !fill.is_empty() {
        next(&mut text, "Fill the volumes", &fill);
    }
    next(&mut text, "Start the pod", &["podman kube play kube.yaml".to_string()]);
    let _ = writeln!(
        text,
        "`podman kube down kube.yaml` stops it; volumes stay. `sha256sum -c SHA256SUMS` checks this folder."
    );
    let _ = writeln!(
        text,
        "\nOther tools: the images are an OCI image layout, which `skopeo copy oci:images:NAME …` reads;"
    );
    let _ = writeln!(text, "`podman load` does not take a layout of many images. pod.json says what the pod is.");
    if pod.volumes.iter().any(|v| v.claim.is_some()) {
        let claims: Vec<&str> = pod.volumes.iter().filter_map(|v| v.claim.as_deref()).collect();
        let _ = writeln!(
            text,
            "In Kubernetes, make persistent volume claims of these names first, and unpack the archives of\nvolumes/ into them: {}.",
            claims.join(", ")
        );
    }
    if !pod.systemd_units.is_empty() {
        let _ = writeln!(text, "\nUnits for systemd are in systemd/: {}.", pod.systemd_units.join(", "));
    }
    text
}

fn one_line(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}
