"""Mean field on the permutohedral lattice with torch operations: any device, made for GPUs.

The lattice of Adams et al. (Eurographics 2010) as Krähenbühl & Koltun's densecrf uses it: every point of a feature
space of d dimensions lies in a simplex of d + 1 lattice vertices. Values are splatted to these with barycentric
weights, blurred along the d + 1 axes of the lattice with (1/2, 1, 1/2), and sliced back with the same weights.

A vertex is an integer vector of d + 1 numbers that sum to zero and are all equal modulo d + 1. Its key is one int64:
the common remainder in the top bits, and the quotients of the first d numbers in fields of 60 // d bits below.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.errors import InputError
from seeds.crf.gaussian_kernels import Kernels, pixel_positions

REMAINDER_SHIFT = 60
EXACT = 2**22  # sums of d + 1 smaller quotients are exact in float32


@dataclass(frozen=True)
class TorchLattice:
    """A filter ``weight · D^-1/2 S' B S D^-1/2`` over n points of one image or of several.

    Attributes:
        vertices: int64 (n, d + 1), the vertices of each point's simplex, 0..m-1.
        weights: float32 (n, d + 1), barycentric weights times the point's share of normalisation and kernel weight.
        neighbors: int64 (d + 1, 2, m), the vertices one step up and down each axis; m where there is none.
    """

    vertices: Tensor
    weights: Tensor
    neighbors: Tensor

    def filter(self, values: Tensor) -> Tensor:
        """Return the filtered values: float32 (n, K), as `values`."""
        m = self.neighbors.shape[2]
        nodes = values.new_zeros((m + 1, values.shape[1]))  # the last row stays zero: it stands for missing vertices
        for j in range(self.vertices.shape[1]):
            nodes.index_add_(0, self.vertices[:, j], values * self.weights[:, j, None])
        for up, down in self.neighbors:
            nodes[:m] += 0.5 * (nodes[up] + nodes[down])
        result = torch.zeros_like(values)
        for j in range(self.vertices.shape[1]):
            result.addcmul_(nodes[self.vertices[:, j]], self.weights[:, j, None])
        return result


def torch_lattice_mean_field(image: Tensor, logits: Tensor, kernels: Kernels, iterations: int) -> Tensor:
    """Run mean field with both kernels as lattices, the whole batch at once.

    Args:
        image: uint8 (B, 3, H, W).
        logits: float32 (B, K, H, W), on the same device.
        kernels: the two kernels.
        iterations: number of mean-field updates.

    Returns:
        Probabilities, float32 (B, K, H, W).

    Raises:
        InputError: a kernel is so narrow, beside the size of the image, that vertices do not fit their keys.
    """
    b, k, h, w = logits.shape
    places = pixel_positions(h, w, image.device)  # (N, 2)
    smooth = build_torch_lattice(places / kernels.gaussian_sxy, kernels.gaussian_weight)
    colors = image.flatten(2).transpose(1, 2) / kernels.bilateral_srgb  # (B, N, 3)
    near = places / kernels.bilateral_sxy
    bilateral = [build_torch_lattice(torch.cat((near, color), 1), kernels.bilateral_weight) for color in colors]
    lattices = [join_lattices(bilateral), join_lattices([smooth] * b)]
    unary = logits.permute(0, 2, 3, 1).reshape(b * h * w, k)
    q = torch.softmax(unary, dim=1)
    for _ in range(iterations):
        q = torch.softmax(sum((lattice.filter(q) for lattice in lattices), unary), dim=1)
    return q.reshape(b, h, w, k).permute(0, 3, 1, 2).contiguous()


def build_torch_lattice(features: Tensor, weight: float) -> TorchLattice:
    """Build the lattice filter of one image's features, float32 (n, d), with symmetric normalisation and a weight."""
    n, d = features.shape
    keys, barycentric = _simplices(features)
    unique, vertices = torch.unique(keys, return_inverse=True)
    bits, m = REMAINDER_SHIFT // d, len(unique)
    ones = sum(1 << (bits * i) for i in range(d))
    last = (unique >> REMAINDER_SHIFT) == d
    onward = torch.where(last, unique - (d << REMAINDER_SHIFT) + ones, unique + (1 << REMAINDER_SHIFT))
    neighbors = torch.full((d + 1, 2, m + 1), m, dtype=torch.long, device=unique.device)
    for j in range(d + 1):
        # one step down axis j adds 1 to every coordinate and takes d + 1 from coordinate j
        wanted = onward - (1 << (bits * j)) if j < d else onward
        at = torch.searchsorted(unique, wanted).clamp_(max=m - 1)
        neighbors[j, 1, :m] = down = torch.where(unique[at] == wanted, at, m)
        neighbors[j, 0].scatter_(0, down, torch.arange(m, device=unique.device))
    lattice = TorchLattice(vertices, barycentric, neighbors[:, :, :m].contiguous())
    alpha = 1 / (1 + 2.0**-d)  # densecrf's constant for the gain of the blur
    norm = lattice.filter(features.new_ones((n, 1))) * alpha
    share = (norm + 1e-20).rsqrt_() * math.sqrt(alpha * weight)
    return TorchLattice(vertices, barycentric * share, lattice.neighbors)


def join_lattices(lattices: list[TorchLattice]) -> TorchLattice:
    """Return one lattice that filters the points of several images, one image after the other."""
    total = sum(lattice.neighbors.shape[2] for lattice in lattices)
    vertices, neighbors, first = [], [], 0
    for lattice in lattices:
        size = lattice.neighbors.shape[2]
        vertices.append(lattice.vertices + first)
        neighbors.append((lattice.neighbors + first).masked_fill_(lattice.neighbors == size, total))
        first += size
    weights = torch.cat([lattice.weights for lattice in lattices])
    return TorchLattice(torch.cat(vertices), weights, torch.cat(neighbors, 2))


def _simplices(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the simplex of each point: keys int64 (n, d + 1) and barycentric weights float32 (n, d + 1)."""
    n, d = features.shape
    # embed the points in the lattice's hyperplane of R^(d+1), in units of the blur's standard deviation
    std = math.sqrt(2 / 3) * (d + 1)
    scaled = features * torch.tensor([std / math.sqrt((i + 1) * (i + 2)) for i in range(d)]).to(features)
    zero = torch.zeros_like(scaled[:, :1])
    sums = torch.cat((scaled.flip(1).cumsum(1).flip(1), zero), 1)  # over coordinates ≥ i
    elevated = sums - torch.cat((zero, torch.arange(1, d + 1, device=features.device) * scaled), 1)  # (n, d + 1)
    quotient = torch.round(elevated / (d + 1))
    excess = quotient.sum(1, keepdim=True)
    rest = elevated - quotient * (d + 1)
    # rank: the place of each coordinate in descending order of the rest, ties in order of index
    above = rest[:, None, :] > rest[:, :, None]
    tie = (rest[:, None, :] == rest[:, :, None]).tril(-1)
    rank = (above | tie).sum(2) + excess
    shift = (rank < 0).float() - (rank > d).float()
    rank, quotient = rank + shift * (d + 1), quotient + shift
    rest = (elevated - quotient * (d + 1)) / (d + 1)

    bits = REMAINDER_SHIFT // d
    if not quotient.abs().amax() < min(2 ** (bits - 1) - 2, EXACT):
        raise InputError(f"the CRF's kernels are too narrow for an image of {n} pixels: raise sxy or srgb")
    place = (d - rank).long()
    barycentric = rest.new_zeros((n, d + 2))
    barycentric.scatter_add_(1, place, rest).scatter_add_(1, place + 1, -rest)
    barycentric[:, 0] += 1 + barycentric[:, d + 1]

    fields = torch.tensor([1 << (bits * i) for i in range(d)], device=features.device)
    remainder = torch.arange(d + 1, device=features.device)
    wrapped = rank[:, None, :d].long() > d - remainder[:, None]  # (n, remainder, coordinate)
    fixed = ((quotient[:, None, :d].long() + 2 ** (bits - 1) - wrapped.long()) * fields).sum(2)
    return fixed + (remainder << REMAINDER_SHIFT), barycentric[:, : d + 1]
