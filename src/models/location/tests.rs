use super::*;

/// A folder with these empty files.
fn place(files: &[&str]) -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    add(place.path(), files);
    place
}

fn add(place: &Path, files: &[&str]) {
    for file in files {
        let file = place.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "").unwrap();
    }
}

fn find(path: impl AsRef<Path>) -> Result<ModelFolder> {
    ModelFolder::find_in(path.as_ref(), None)
}

/// The paths of network and scheduler relative to `place`.
fn parts(place: &Path, path: &str) -> (String, String) {
    let found = find(place.join(path)).unwrap();
    let relative = |part: &Path| part.strip_prefix(place).unwrap().display().to_string();
    (relative(found.network()), relative(found.scheduler_file()))
}

const PIPELINE: [&str; 3] = [
    "model_index.json",
    "unet/config.json",
    "scheduler/scheduler_config.json",
];

#[test]
fn the_folders_that_people_have_are_found() {
    let training = place(&[&PIPELINE[..], &["checkpoint-500/unet/config.json"]].concat());
    let training = training.path();
    let scheduler = "scheduler/scheduler_config.json";
    for (given, network) in [
        ("", "unet"),
        ("unet", "unet"),
        ("unet/", "unet"),
        ("checkpoint-500", "checkpoint-500/unet"),
        ("checkpoint-500/unet", "checkpoint-500/unet"),
    ] {
        let (found, scheduler_file) = parts(training, given);
        assert_eq!(
            (found.as_str(), scheduler_file.as_str()),
            (network, scheduler),
            "{given}"
        );
        let index = find(training.join(given)).unwrap();
        assert_eq!(
            index.index_file(),
            Some(&*training.join("model_index.json")),
            "{given}"
        );
    }
    let flat = place(&["cat/config.json", "cat/scheduler_config.json"]);
    assert_eq!(
        parts(flat.path(), "cat"),
        ("cat".into(), "cat/scheduler_config.json".into())
    );
    let flat = find(flat.path().join("cat")).unwrap();
    assert_eq!((flat.index_file(), flat.pipeline()), (None, flat.network()));
    for (given, pipeline) in [
        ("", ""),
        ("unet", ""),
        ("checkpoint-500", "checkpoint-500"),
        ("checkpoint-500/unet", "checkpoint-500"),
    ] {
        let found = find(training.join(given)).unwrap();
        assert_eq!(found.pipeline(), training.join(pipeline), "{given}");
    }
}

#[test]
fn a_scheduler_from_elsewhere_is_said() {
    let pipeline = place(&PIPELINE);
    assert_eq!(find(pipeline.path()).unwrap().notes(), []);
    let found = find(pipeline.path().join("unet")).unwrap();
    let file = pipeline.path().join("scheduler/scheduler_config.json");
    assert_eq!(found.notes(), [LoadNote::SchedulerElsewhere { file }]);
}

#[test]
fn of_weights_and_their_average_the_weights_are_taken_and_it_is_said() {
    let both = [
        "checkpoint-9/unet/config.json",
        "checkpoint-9/unet_ema/config.json",
    ];
    let training = place(&[&PIPELINE[..], &both].concat());
    let found = find(training.path().join("checkpoint-9")).unwrap();
    assert!(found.network().ends_with("checkpoint-9/unet"));
    let said: Vec<_> = found.notes().iter().map(ToString::to_string).collect();
    assert!(
        said[0].contains("checkpoint-9/unet_ema") && said[1].contains("scheduler"),
        "{said:?}"
    );

    let average = training.path().join("checkpoint-9/unet_ema");
    assert_eq!(find(&average).unwrap().network(), average);
    fs::remove_dir_all(training.path().join("checkpoint-9/unet")).unwrap();
    assert_eq!(
        find(training.path().join("checkpoint-9"))
            .unwrap()
            .network(),
        average
    );
}

#[test]
fn downloads_are_found_by_folder_and_by_name() {
    let model = "models--google--ddpm-cat-256";
    let in_snapshot = |revision: &str| {
        ["config.json", "scheduler_config.json", "model_index.json"]
            .map(|file| format!("{model}/snapshots/{revision}/{file}"))
    };
    let cache = tempfile::tempdir().unwrap();
    let cache = cache.path();
    add(
        cache,
        &in_snapshot("82ca").each_ref().map(|file| file.as_str()),
    );
    let snapshot = cache.join(model).join("snapshots/82ca");
    let found = |path: &Path| ModelFolder::find_in(path, Some(cache));
    let given = [
        cache.join(model),
        cache.join(model).join("snapshots"),
        "google/ddpm-cat-256".into(),
        "https://huggingface.co/google/ddpm-cat-256".into(),
    ];
    for given in &given {
        let found = found(given).unwrap();
        assert_eq!(found.network(), snapshot, "{}", given.display());
        assert_eq!(
            found.scheduler_file(),
            snapshot.join("scheduler_config.json")
        );
        let folder = snapshot.clone();
        assert_eq!(found.notes(), [LoadNote::Snapshot { folder }]);
    }
    assert_eq!(found(&snapshot).unwrap().notes(), []);

    // Of two snapshots, the one that refs/main names.
    add(
        cache,
        &in_snapshot("0ab1").each_ref().map(|file| file.as_str()),
    );
    let error = found(&given[0]).unwrap_err().to_string();
    assert!(error.contains("0ab1, 82ca"), "{error}");
    for (main, is_found) in [("82ca\n", true), ("../../elsewhere", false)] {
        fs::create_dir_all(cache.join(model).join("refs")).unwrap();
        fs::write(cache.join(model).join("refs/main"), main).unwrap();
        assert_eq!(
            found(&given[0]).is_ok_and(|found| found.network() == snapshot),
            is_found
        );
    }
    fs::remove_dir_all(cache.join(model).join("snapshots")).unwrap();
    fs::create_dir(cache.join(model).join("snapshots")).unwrap();
    let error = found(&given[0]).unwrap_err().to_string();
    assert!(error.contains("download has not ended"), "{error}");
}

#[test]
fn what_is_not_found_is_told_with_all_places_and_the_way_out() {
    let cache = tempfile::tempdir().unwrap();
    let error = ModelFolder::find_in("google/ddpm-cat-256".as_ref(), Some(cache.path()));
    let error = error.unwrap_err().to_string();
    for part in [
        "models--google--ddpm-cat-256",
        "hf download google/ddpm-cat-256",
    ] {
        assert!(error.contains(part), "{error}");
    }
    for absent in [
        "nowhere",
        "no/such/folder",
        "/google/ddpm",
        "./google",
        "a b/c",
    ] {
        let error = find(absent).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
        assert!(error.to_string().contains(absent), "{error}");
    }

    let without = place(&["checkpoint-5/unet/config.json"]);
    let error = find(without.path().join("checkpoint-5"))
        .unwrap_err()
        .to_string();
    for part in [
        "checkpoint-5/scheduler/scheduler_config.json",
        "checkpoint-5/scheduler_config.json",
        "checkpoint-5/unet/scheduler_config.json",
        "/scheduler/scheduler_config.json",
        "save_pretrained",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let error = find(without.path()).unwrap_err().to_string();
    assert!(
        error.contains("give one of its checkpoints: checkpoint-5"),
        "{error}"
    );

    let other = place(&["text_encoder/config.json", "vae/config.json"]);
    let error = find(other.path()).unwrap_err().to_string();
    for part in [
        "unet/config.json",
        "unet_ema/config.json",
        "transformer/config.json",
        "it holds text_encoder, vae",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let error = find(other.path().join("vae/config.json"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("it is a file"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = find(empty.path()).unwrap_err().to_string();
    assert!(error.contains("it is empty"), "{error}");
}
