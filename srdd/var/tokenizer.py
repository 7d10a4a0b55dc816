"""VAR's multi-scale VQ-VAE: images <-> codes of every scale."""

import torch
from torch import Tensor, nn

from srdd.errors import UserError
from srdd.nn.autoencoder import Decoder, Encoder, decode_chunk, in_chunks, prepare_upsampling
from srdd.var.config import TokenizerConfig
from srdd.var.quantize import MultiScaleQuantizer, Quantized
from srdd.var.scales import ScaleSchedule


class Tokenizer(nn.Module):
    """Encoder, multi-scale quantiser, decoder.

    Shapes:
        images: [B, 3, R, R] in [-1, 1].
        codes_BL: int64 [B, L], scale after scale, row by row within a scale.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantizer = MultiScaleQuantizer(
            config.schedule, config.vocab_size, config.z_channels, config.num_phi
        )
        self.quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 3, padding=1)

    @property
    def schedule(self) -> ScaleSchedule:
        """The scales of the codes."""
        return self.quantizer.schedule

    def prepare(self) -> "Tokenizer":
        """Lay the weights out for inference, where they stay as they are; returns self.

        Convolutions run faster in channels-last memory, and upsampling by phases.
        """
        for part in (self.encoder, self.decoder):
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        prepare_upsampling(self.decoder)
        return self

    def latent(self, images: Tensor) -> Tensor:
        """The encoder's map before quantisation: [B, 3, R, R] -> [B, C, N, N]."""
        side = self.config.resolution
        if images.dim() != 4 or tuple(images.shape[1:]) != (3, side, side):
            raise UserError(
                f"images must be [B, 3, {side}, {side}] in [-1, 1], got {list(images.shape)}"
            )
        out: Tensor = self.quant_conv(self.encoder(images))
        return out

    def pixels(self, f_hat: Tensor) -> Tensor:
        """Decode a latent map without clamping: [B, C, N, N] -> [B, 3, R, R]."""
        out: Tensor = self.decoder(self.post_quant_conv(f_hat))
        return out

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images to codes: [B, 3, R, R] in [-1, 1] -> int64 [B, L].

        Raises:
            UserError: the images have another size.
        """
        return self.quantizer.encode(self.latent(images))

    @torch.no_grad()
    def decode(self, codes_BL: Tensor) -> Tensor:
        """Codes to images: int64 [B, L] -> [B, 3, R, R] in [-1, 1].

        Raises:
            UserError: the codes are of another schedule or outside the vocabulary.
        """
        if codes_BL.dim() != 2 or codes_BL.shape[1] != self.schedule.length:
            raise UserError(
                f"codes must be [B, {self.schedule.length}] for scales "
                f"{list(self.schedule.patch_nums)}, got {list(codes_BL.shape)}"
            )
        if codes_BL.numel() and not (
            0 <= int(codes_BL.min()) and int(codes_BL.max()) < self.config.vocab_size
        ):
            raise UserError(f"codes must lie in [0, {self.config.vocab_size})")
        return self.decode_latent(self.quantizer.decode(codes_BL))

    @torch.no_grad()
    def decode_latent(self, f_hat: Tensor) -> Tensor:
        """Latents to images in chunks of one size: [B, C, N, N] -> [B, 3, R, R] in [-1, 1]."""
        z = f_hat.to(self.post_quant_conv.weight.dtype)
        pixels = nn.Sequential(self.post_quant_conv, self.decoder)
        size = decode_chunk(self.config.resolution, len(z), z.device)
        return in_chunks(pixels, z, size).float().clamp_(-1, 1).contiguous()

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstruct for training: the decoder's gradient passes straight through to f."""
        f = self.latent(images)
        quantized = self.quantizer(f)
        return self.pixels(f + (quantized.f_hat - f).detach()), quantized
