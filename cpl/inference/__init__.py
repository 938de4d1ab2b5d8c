"""Using a trained model: restoring, metrics, evaluation. Image files are cpl.images'.

restore    restore(model, image): PIL, arrays or tensors; the same kind comes out
streaming  a whole image exactly, window by window, within a limit on memory
tiled      a large image in blended tiles: any model, any dtype, not exactly the same
folder     many files: what is read and written, side by side with restoring; resumed; shared by processes
routing    which prompts the routers choose, read while the network restores
inspect    charts and a page of what the prompts do
metrics    psnr, ssim on RGB or Y
evaluate   scores per degradation and their average
"""
