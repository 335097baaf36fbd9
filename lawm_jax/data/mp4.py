"""Writes videos as H.264 in MP4, which every browser plays."""

import fractions


def write(path, frames, rate, options, bt709=False):
    """Writes a video file.

    Args:
      path: path of the .mp4 file.
      frames: iterable of uint8 [H, W, 3], H and W even.
      rate: frames per second.
      options: options of libx264, such as {"crf": "23"}.
      bt709: whether to convert colors with BT.709 and tag the file accordingly; by default PyAV
        converts them with BT.601.
    """
    import av
    from av.video.reformatter import Colorspace

    # With the index first, a browser can start to play before the download ends.
    with av.open(str(path), "w", options={"movflags": "+faststart"} if bt709 else {}) as container:
        rate = fractions.Fraction(rate).limit_denominator(1000)
        stream = None
        for image in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=rate, options=options)
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuv420p"
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if bt709:
                frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
