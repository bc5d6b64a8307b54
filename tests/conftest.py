"""Shared settings and fixtures of all tests."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start, too: bits are compared
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import pytest
import torch

torch.set_num_threads(1)
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real VOC images, ImageNet weights and released cues; not part of the project."""
    folder = Path(os.environ.get("TAG2MASK_DATA", SHARED))
    if not folder.is_dir():
        pytest.skip(f"real images are not here ({folder}); set TAG2MASK_DATA to their folder")
    return folder


@pytest.fixture(autouse=True, scope="session")
def float32_where_precision_is_auto() -> Iterator[None]:
    """Tests compute the same on every processor; those of the choice itself take the function from `seeds`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seeds.precision.computes_bfloat16", lambda _accelerator: False)
        yield


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URI ``s3://bucket`` of an empty bucket on an S3 server, whose address and keys are in the environment.

    The server runs in a thread of the session. Each test uses another folder of the bucket.
    """
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    fsspec = pytest.importorskip("fsspec")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")  # tests of errors do not wait
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
        fsspec.filesystem("s3").clear_instance_cache()
    server.stop()
