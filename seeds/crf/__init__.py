"""The dense CRF of Krähenbühl & Koltun: batched, on any device, without a C++ compiler."""

from seeds.crf.dense_crf import dense_crf

__all__ = ["dense_crf"]
